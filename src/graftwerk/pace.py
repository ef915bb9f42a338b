"""How long a rank is busy by itself in a step, and which ranks are slower than the others.

Ranks that agree in every step all take the time of the slowest. What tells them apart is the time
that depends on nobody else: waiting for images, and the forward passes.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

SLOWER = 1.5
"""Times the median of the others."""
TIMES = 3
"""So many windows in a row, before somebody is called a straggler."""
WINDOW = 20
"""Steps, at least."""


class Pace:
    """Of one rank; `busy` grows by its seconds."""

    def __init__(self, device: torch.device) -> None:
        self.busy = 0.0
        self._cuda = device.type == "cuda"
        self._began = 0.0
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def follow(self, objective: nn.Module) -> None:
        """Count its forward passes from now on."""
        objective.register_forward_pre_hook(self._before)
        objective.register_forward_hook(self._after)

    def _before(self, *call: Any) -> None:
        del call
        if self._cuda:
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            self._events.append(pair)
        else:
            self._began = time.perf_counter()

    def _after(self, *call: Any) -> None:
        del call
        if not self._cuda:
            self.busy += time.perf_counter() - self._began
            return
        self._events[-1][1].record()
        while self._events and self._events[0][1].query():
            first, last = self._events.popleft()
            self.busy += first.elapsed_time(last) / 1000


def slow_ranks(seconds: Mapping[int, float]) -> dict[int, float]:
    """Ranks that take `SLOWER` times as long as the others do, and how many times."""
    slow: dict[int, float] = {}
    for rank, own in seconds.items():
        others = [value for other, value in seconds.items() if other != rank]
        usual = statistics.median_low(others) if others else own
        if usual > 0 and own > SLOWER * usual:
            slow[rank] = own / usual
    return slow


class Stragglers:
    """Fed with every rank's steps and busy seconds, tells who has become slow for some time."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[int, float]] = {}
        self._streak: dict[int, int] = {}

    def update(self, now: Mapping[int, tuple[int, float]]) -> dict[int, float]:
        """{rank: how many times as long as the others} of those to be told about now."""
        if self._before.keys() != now.keys():
            self._before = dict(now)
            return {}
        steps = {rank: done - self._before[rank][0] for rank, (done, _) in now.items()}
        if min(steps.values()) < WINDOW:
            return {}
        slow = slow_ranks(
            {rank: (busy - self._before[rank][1]) / steps[rank] for rank, (_, busy) in now.items()}
        )
        self._before = dict(now)
        self._streak = {rank: self._streak.get(rank, 0) + 1 for rank in slow}
        return {rank: slow[rank] for rank, count in self._streak.items() if count == TIMES}
