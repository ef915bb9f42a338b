"""Signals set a flag; the ranks agree on it at a step boundary.

The agreement of a step travels while the next ones compute, so it costs no waiting: all ranks
learn together, a step or a few later, that any of them was asked to stop or to save.
"""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from graftwerk.axes import World
from graftwerk.errors import AGAIN, INTERRUPTED, GraftwerkError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StoppedError(GraftwerkError):
    """The run was asked to stop; its state is saved."""

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}; the same command goes on there")
        self.exit_code = INTERRUPTED if number == signal.SIGINT else AGAIN


class Agreement:
    """What ranks agree on at each step boundary: a signal to stop for, and whether to save."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._signal = 0

    @contextmanager
    def listening(self) -> Generator[None]:
        """A second SIGINT or SIGTERM acts as if nobody listened: the process ends at once."""
        before = {int(number): signal.getsignal(number) for number in STOPPING}

        def note(number: int, frame: FrameType | None) -> None:
            del frame
            self._signal = number
            signal.signal(number, before[number])

        for number in STOPPING:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number in STOPPING:
                signal.signal(number, before[number])

    def at_boundary(self, *, save: bool = False, streak: int = 0) -> tuple[int, bool, int]:
        """(signal or 0, save?, largest streak of steps left out); all ranks call it each step.

        The same on every rank; of an earlier boundary where there are several.
        """
        flags = [self._signal, int(save), streak]
        if self._world.control is not None:
            flags = self._world.control.boundary(flags)
        return flags[0], bool(flags[1]), flags[2]
