"""Steps whose loss or gradients are not finite are left out: nothing that lasts may see them.

A loss that is not finite makes the gradients of its rank not finite (`Precision.backward`), and the
average over ranks carries that to all of them: they leave the step out together, and nobody had to
ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import (
    Tensor,
    _foreach_copy_,  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    nn,
)
from torch.nn.utils import get_total_norm


class Skip(NamedTuple):
    """Why a rank left a step out."""

    reason: str
    images: list[int]
    """Positions in the data set of the images of the micro-batches that were to blame."""


class Guard:
    """What a step may change before it is known to be good, and whether it is."""

    def __init__(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._objective, self._optimizer = objective, optimizer
        self._buffers: list[Tensor] = list(objective.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]
        self._losses: list[tuple[Tensor, Tensor]] = []
        self.streak = 0
        """Steps left out in a row."""

    @torch.no_grad()
    def begin(self) -> None:
        """Before the forward pass, which writes the statistics of norms."""
        self._losses.clear()
        if self._buffers:
            _foreach_copy_(self._before, self._buffers)

    def note(self, loss: Tensor, indices: Tensor) -> None:
        """The loss of a micro-batch, and the positions [n] of its images."""
        self._losses.append((loss, indices))

    @torch.no_grad()
    def passes(self) -> bool:
        """Whether the 2-norm of all gradients is finite; if not, buffers are as they were."""
        owned = [p for group in self._optimizer.param_groups for p in group["params"]]
        parameters = {id(p): p for p in (*self._objective.parameters(), *owned)}.values()
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite = bool(torch.isfinite(norm))
        if not finite and self._buffers:
            _foreach_copy_(self._buffers, self._before)
        return finite

    def count(self, *, skipped: bool, scale: float) -> None:
        """Count the step; overflows of fp16 are the scale's to mend, as long as it is above 1."""
        if not skipped:
            self.streak = 0
        elif scale <= 1:
            self.streak += 1

    def reason(self, scale: float) -> Skip:
        """Of the step that was just left out."""
        bad = [
            (loss.item(), indices) for loss, indices in self._losses if not loss.isfinite().item()
        ]
        if bad:
            return Skip(f"the loss is {bad[0][0]}", _positions([indices for _, indices in bad]))
        images = _positions([indices for _, indices in self._losses])
        if scale != 1:
            return Skip(f"gradients overflowed; the scale of fp16 is {scale:g} now", images)
        return Skip("gradients are not finite", images)


def _positions(indices: Sequence[Tensor]) -> list[int]:
    return [position for part in indices for position in part.tolist()]
