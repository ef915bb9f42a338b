"""Signals set a flag; the ranks agree on it at a step boundary.

The agreement of a step travels while the next ones compute, so it costs no waiting: all ranks
learn together, a step or a few later, that any of them was asked to stop or to save.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

from graftwerk.axes import World
from graftwerk.errors import AGAIN, INTERRUPTED, GraftwerkError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


TIME_LIMIT = 200
"""In the place of a signal: the scheduler is about to end this job."""


class StoppedError(GraftwerkError):
    """The run was asked to stop; its state is saved."""

    def __init__(self, number: int, step: int) -> None:
        limit = number == TIME_LIMIT
        name = "the job's time limit" if limit else signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}; the same command goes on there")
        self.exit_code = INTERRUPTED if number == signal.SIGINT else AGAIN


def last_moment(env: Mapping[str, str], margin: float) -> float:
    """When to stop, in seconds since 1970; of a short job, a tenth of its time is enough."""
    try:
        end, start = float(env["SLURM_JOB_END_TIME"]), float(env["SLURM_JOB_START_TIME"])
    except (KeyError, ValueError):
        return math.inf
    return end - min(margin, (end - start) / 10)


class Agreed(NamedTuple):
    """At first nothing, where there are several ranks."""

    signal: int
    """To stop for; 0: none."""
    save: bool
    streak: int
    """Steps left out in a row."""
    written: int
    """The flag of `writer.Writer`."""


class Agreement:
    """What ranks agree on at each step boundary: a signal to stop for, and whether to save."""

    def __init__(self, world: World, *, margin: float = 0.0) -> None:
        """`margin`: seconds before the end of a Slurm job, at which to stop by itself."""
        self._world = world
        self._signal = 0
        self._end = last_moment(os.environ, margin)

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

    def asked(self) -> int:
        """What this rank has to stop for, by now; 0: nothing."""
        if not self._signal and time.time() > self._end:
            self._signal = TIME_LIMIT
        return self._signal

    def at_boundary(self, *, save: bool = False, streak: int = 0, written: int = 0) -> Agreed:
        """All ranks call it after every step, and learn the same.

        The largest that any of them has handed in; of an earlier boundary where there are several.
        """
        flags = [self.asked(), int(save), streak, written]
        if self._world.control is not None:
            flags = self._world.control.boundary(flags)
        return Agreed(flags[0], bool(flags[1]), *flags[2:])
