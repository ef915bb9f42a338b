"""Parameters of replicas as flat pieces, and what all replicas must have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import torch
from torch import (
    Tensor,
    _foreach_add_,  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    nn,
)

from graftwerk.elastic.group import Group
from graftwerk.elastic.mesh import joined
from graftwerk.errors import ConfigError


def buckets(parameters: Iterable[nn.Parameter], size: int) -> Generator[list[nn.Parameter]]:
    """In order, in lists of at most `size` bytes (or one parameter) of one type."""
    bucket: list[nn.Parameter] = []
    filled = 0
    for parameter in parameters:
        full = filled + parameter.nbytes > size
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, filled = [], 0
        bucket.append(parameter)
        filled += parameter.nbytes
    if bucket:
        yield bucket


def laid(tensor: Tensor) -> Tensor:
    """A view whose order is that of the memory, whatever the format: quick to read and to add."""
    return tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))


def flattened(bucket: Sequence[Tensor], flat: Tensor) -> Tensor:
    """`flat` [n], filled with all elements of the bucket as they lie in memory."""
    return torch.cat([laid(tensor.detach()).reshape(-1) for tensor in bucket], out=flat)


def add_(bucket: Sequence[Tensor], flat: Tensor, weight: float) -> None:
    """In place, ``bucket + weight · flat``, where `flat` [n] is laid out as by `flattened`."""
    views = [laid(tensor) for tensor in bucket]
    parts = flat.split([view.numel() for view in views])
    shaped = [part.view(view.shape) for part, view in zip(parts, views, strict=True)]
    _foreach_add_(views, shaped, alpha=weight)


def copy_done(tensor: Tensor) -> Any:
    """A function that waits for what the GPU was told to copy so far; None on the CPU."""
    if tensor.device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


@torch.no_grad()
def average_(tensors: Sequence[Tensor], mean_: Any) -> None:
    """In place, the mean over all workers, one type of tensors at a time."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        parts = mean_(joined(same)).split([tensor.numel() for tensor in same])
        for tensor, part in zip(same, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def average_finite_(tensors: Sequence[Tensor], mean_: Any) -> bool:
    """In place, the mean over the workers whose tensors are all finite, on every worker.

    Whether those of this one were.
    """
    own = all(map(is_finite, tensors))
    share = mean_(torch.tensor([float(own)], dtype=torch.float64)).item()
    if share and not own:
        for tensor in tensors:
            tensor.zero_()
    average_(tensors, mean_)
    if 0 < share < 1:
        for tensor in tensors:
            tensor.div_(share)
    return own


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are, and their sum too, which is quicker to tell."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return bool(tensor.detach().sum(dtype=wide).isfinite())


def check_same(group: Group, model: nn.Module) -> None:
    """Refuse, on all ranks, models whose parameters differ in name, order, shape or type."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lines = [
        f"{name} {tuple(t.shape)} {t.dtype}, laid out as {tuple(laid(t).shape)}"
        for name, t in tensors
    ]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    digests = group.gather(digest)
    other = next((rank for rank, found in enumerate(digests) if found != digests[0]), None)
    if other is None:
        return
    first, second = (group.gather(lines)[rank] for rank in (0, other))
    pairs = list(zip(first, second, strict=False))
    number = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    ours, theirs = (found[number] if number < len(found) else "none" for found in (first, second))
    raise ConfigError(
        [
            f"sync: rank {other} has another model than rank 0: parameter or buffer {number} is "
            f"{theirs} there, and {ours} on rank 0; all ranks must be started with the same command"
        ]
    )
