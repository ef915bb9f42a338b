"""When a checkpoint is due: `save.every`, in steps, epochs or minutes."""

from __future__ import annotations

import time

from graftwerk.run import parse_interval


class SaveInterval:
    """``SaveInterval("1 epoch", steps_per_epoch=100)``; minutes count from the last `restart`."""

    def __init__(self, every: str, steps_per_epoch: int) -> None:
        number, unit = parse_interval(every)
        if unit == "epoch":
            number = max(1, round(number * steps_per_epoch))
        self._steps = None if unit == "minute" else int(number)
        self._seconds = 60 * number if unit == "minute" else float("inf")
        self.restart()

    def restart(self) -> None:
        self._since = time.monotonic()

    def at_step(self, done: int) -> bool:
        """Whether the number of finished steps asks for a checkpoint, on every rank alike."""
        return self._steps is not None and done % self._steps == 0

    def by_clock(self) -> bool:
        """Whether this machine's clock does."""
        return time.monotonic() - self._since >= self._seconds
