"""A copy of a state on the CPU, so that training may go on while the copy is written."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


class Snapshot:
    """Memory for copies of equally built states, one at a time.

    Copying into memory that is there already costs a fraction of asking for more; of a GPU's
    tensors it is page-locked, which lets all of them travel at once.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[Any, ...], Tensor] = {}

    def take(self, state: Any) -> Any:
        """The same tree with tensors of its own, valid until the next call."""
        used: dict[tuple[Any, ...], Tensor] = {}
        copied = self._copy(state, (), used)
        if any(tensor.is_pinned() for tensor in used.values()):
            torch.cuda.current_stream().synchronize()
        self._memory = used
        return copied

    def _copy(self, value: Any, path: tuple[Any, ...], used: dict[tuple[Any, ...], Tensor]) -> Any:
        if isinstance(value, Tensor):
            used[path] = self._tensor(value.detach(), self._memory.get(path))
            return used[path]
        if isinstance(value, dict):
            copied = copy.copy(value)  # a state_dict has attributes too
            copied.update({k: self._copy(v, (*path, k), used) for k, v in value.items()})
            return copied
        if isinstance(value, list | tuple):
            items = [self._copy(item, (*path, i), used) for i, item in enumerate(value)]
            named = isinstance(value, tuple) and hasattr(value, "_fields")
            return type(value)(*items) if named else type(value)(items)
        return copy.deepcopy(value)

    def _tensor(self, tensor: Tensor, memory: Tensor | None) -> Tensor:
        if tensor.layout != torch.strided:
            return tensor.to("cpu", copy=True)
        if memory is None or not _alike(memory, tensor):
            memory = torch.empty_like(
                tensor, device="cpu", pin_memory=tensor.is_cuda, memory_format=torch.preserve_format
            )
        return memory.copy_(tensor, non_blocking=tensor.is_cuda)


def _alike(memory: Tensor, tensor: Tensor) -> bool:
    return (
        memory.layout == torch.strided
        and memory.dtype == tensor.dtype
        and memory.shape == tensor.shape
        and memory.stride() == torch.empty_like(tensor, device="meta").stride()
    )
