"""The training loss as the log shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from graftwerk.axes import World
from graftwerk.distributed import sum_


class Meter:
    """Mean of the training loss since the last evaluation, and since the last record."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._counts = [0, 0]

    def add(self, loss: torch.Tensor) -> None:
        self._sums += loss
        self._counts = [count + 1 for count in self._counts]

    def take(self, world: World, which: int) -> float:
        """The mean over steps and ranks, forgotten afterwards. A call of all ranks together."""
        own = torch.stack([self._sums[which], self._sums.new_tensor(self._counts[which])])
        total, count = sum_(world, own).tolist()
        mean = total / count if count else math.nan
        self._sums[which] = 0
        self._counts[which] = 0
        return mean

    EVALUATION, RECORD = 0, 1

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums.tolist(), "counts": self._counts}

    def load(self, states: Sequence[dict[str, Any]], world: World) -> None:
        """This rank's own of the states of all ranks; their mean where they were others."""
        own = states if len(states) != world.size else states[world.rank : world.rank + 1]
        sums = torch.tensor([state["sums"] for state in own], dtype=torch.float64)
        self._sums.copy_(sums.mean(0))
        self._counts = list(own[0]["counts"])
