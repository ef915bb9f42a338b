"""When checkpoints are due, and how they come to the disk while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable

from graftwerk.checkpoint import Checkpoints, State
from graftwerk.distributed import from_main
from graftwerk.errors import StorageError
from graftwerk.parts import Parts
from graftwerk.run import parse_interval
from graftwerk.writer import Outcome, Writer

SLOW = 1.0
"""Seconds that training may wait for the save before, without a word."""
LONGEST_PAUSE = 10.0
"""Seconds between two attempts at the last save."""


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


def checkpoints_of(parts: Parts) -> Checkpoints:
    """Of a run; where it may have to go back, there is one of before the first bad step."""
    late = getattr(parts.run.sync, "lead", 0)
    folder = parts.run.folder / "checkpoints"
    return Checkpoints(folder, parts.world, keep=parts.run.save.keep, late=late)


class Saving:
    """Of one run; `tell` writes an event to its log. `save` is a call of all ranks together.

    A checkpoint that can't be written is reported, and the next one tried at its time; only the
    last one ends the run where it fails for `save.patience` seconds.
    """

    def __init__(self, parts: Parts, checkpoints: Checkpoints, tell: Callable[..., None]) -> None:
        self._save, self._world = parts.run.save, parts.world
        self._checkpoints, self._tell = checkpoints, tell
        self.writer = Writer(checkpoints, parts.world, replicated=parts.sync.replicated)
        self.due = SaveInterval(parts.run.save.every, parts.plan.steps_per_epoch)

    def follow(self, written: int) -> None:
        """After each step: what has become of the save on its way. `written` is agreed upon."""
        self.writer.follow(written)
        self._report()

    def save(
        self, done: int, state: State | None, *, facts: State, best: State | None, last: bool
    ) -> None:
        """Write the state after `done` steps; the `last` one is on the disk on return.

        Raises StorageError on every rank where the last one can't be written.
        """
        self.finish()
        if last:
            self._insist(done, state, facts, best)
        elif self._save.asynchronous:
            self.writer.begin(done, state, facts=facts, best=best)
        else:
            try:
                self._write(done, state, facts, best)
            except StorageError as error:
                self._tell("save_failed", step=done, reason=str(error))
        self.due.restart()

    def finish(self) -> None:
        """Wait for the save that is on its way; never is another one begun before its end."""
        began = time.monotonic()
        self.writer.finish()
        waited = time.monotonic() - began
        if waited > SLOW:
            reason = "storage is slow: set save.every to a longer interval, or log.folder elsewhere"
            self._tell("save_waited", seconds=round(waited, 1), reason=reason)
        self._report()

    def _insist(self, done: int, state: State | None, facts: State, best: State | None) -> None:
        """Try again and again, for nothing comes after."""
        deadline, pause = time.monotonic() + self._save.patience, 0.5
        while True:
            try:
                return self._write(done, state, facts, best)
            except StorageError as error:
                self._tell("save_failed", step=done, reason=str(error))
                pause = min(2 * pause, LONGEST_PAUSE)
                if from_main(self._world, time.monotonic() + pause > deadline):
                    newest = self._checkpoints.entries()[:1]
                    where = f"after step {newest[0].step}" if newest else "at the beginning"
                    raise StorageError(
                        f"{error}\nthe run ends here; once there is room, the same command goes on "
                        f"{where}"
                    ) from None
                time.sleep(pause)

    def _write(self, done: int, state: State | None, facts: State, best: State | None) -> None:
        began = time.monotonic()
        path = self._checkpoints.save(done, state, facts=facts, best=best)
        seconds = time.monotonic() - began
        self._told(Outcome(done, path, best is not None, seconds, problems=[]))

    def _report(self) -> None:
        for outcome in self.writer.outcomes():
            self._told(outcome)

    def _told(self, outcome: Outcome) -> None:
        if outcome.problems:
            reason = "\n".join(outcome.problems)
            self._tell("save_failed", step=outcome.step, reason=reason)
        else:
            seconds = round(outcome.seconds, 3)
            self._tell("saved", path=str(outcome.path), best=outcome.best, seconds=seconds)
