"""Where two states are not the same to the last bit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """A place, and in what it differs."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def differences(one: Any, other: Any, where: str = "") -> list[Difference]:
    """The places where two trees of tensors and plain values differ, in the order of `one`."""
    return list(_differences(one, other, where))


def _differences(one: Any, other: Any, where: str) -> Iterator[Difference]:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if what := tensor_difference(one, other):
            yield Difference(where, what)
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            inner = f"{where}.{key}" if where else str(key)
            if key in one and key in other:
                yield from _differences(one[key], other[key], inner)
            else:
                yield Difference(inner, "missing in the " + ("second" if key in one else "first"))
    elif _is_list(one) and _is_list(other):
        if len(one) != len(other):
            yield Difference(where, f"{len(one)} entries, and {len(other)}")
        for number, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from _differences(a, b, f"{where}[{number}]")
    elif type(one) is not type(other) or not _same(one, other):
        yield Difference(where, f"{one!r}, and {other!r}")


def tensor_difference(one: Tensor, other: Tensor) -> str | None:
    """The first element [i, j, …] whose bits differ, and by how much how many do."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return f"{_kind(one)}, and {_kind(other)}"
    bits, others = _bits(one), _bits(other)
    unequal = (bits != others).view(one.numel(), -1).any(1) if one.numel() else torch.zeros(0)
    count = int(unequal.sum())
    if not count:
        return None
    first = int(unequal.nonzero()[0])
    place = [int(index) for index in torch.unravel_index(torch.tensor(first), one.shape)]
    a, b = one.reshape(-1), other.reshape(-1)
    largest = (a[unequal].double() - b[unequal].double()).abs().max().item()
    return (
        f"{a[first].item():.9g}, and {b[first].item():.9g} at {place}; "
        f"{count:,} of {one.numel():,} elements differ, by at most {largest:.3g}"
    )


def digest(state: Any) -> str:
    """16 hex digits of the SHA-256 of a tree of tensors and plain values."""
    total = hashlib.sha256()
    for where, leaf in _leaves(state, ""):
        total.update(where.encode())
        if isinstance(leaf, Tensor):
            total.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            total.update(_bits(leaf).numpy().tobytes())
        else:
            total.update(repr(leaf).encode())
    return total.hexdigest()[:16]


def _leaves(state: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield from _leaves(value, f"{where}.{key}")
    elif _is_list(state):
        for number, value in enumerate(state):
            yield from _leaves(value, f"{where}[{number}]")
    else:
        yield where, state


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _same(one: Any, other: Any) -> bool:
    both_nan = isinstance(one, float) and math.isnan(one) and math.isnan(other)
    return both_nan or one == other


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
