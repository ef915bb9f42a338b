"""Checkpoints written in a thread while training goes on, never more than one behind.

Where ranks are replicas, rank 0 alone writes, and its thread does everything. Where they differ,
each writes its own file; all learn from the agreement of a later step boundary that every file is
there, and then rank 0's thread gives them their name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints, State
from graftwerk.distributed import gather
from graftwerk.snapshot import Snapshot

T = TypeVar("T")
FAR = 2**40
"""More than any run has steps."""


@dataclass(frozen=True)
class Outcome:
    """What became of a save."""

    step: int
    path: Path
    best: bool
    seconds: float
    """From the step boundary until it was known."""
    problems: list[str]
    """Why it could not be written."""


@dataclass
class Pending:
    """A save on its way."""

    step: int
    facts: State
    best: State | None
    began: float
    shard: Future[State | str | None] | None = None
    """This rank's file, or the problem."""
    published: Future[list[str]] | None = None
    """On rank 0, once all files are there: problems of the whole checkpoint."""


class Writer:
    """Saves of one run. `begin`, `follow` and `finish` are calls of all ranks together."""

    def __init__(self, checkpoints: Checkpoints, world: World, *, replicated: bool) -> None:
        self._checkpoints, self._world, self._replicated = checkpoints, world, replicated
        self._snapshot = Snapshot()
        self._pending: Pending | None = None
        self._outcomes: list[Outcome] = []

    def begin(self, step: int, state: State | None, *, facts: State, best: State | None) -> None:
        """Copy `state` and have it written, once the save before is done."""
        self.finish()
        if state is None:
            return
        copied, pending = self._snapshot.take(state), Pending(step, facts, best, time.monotonic())
        if self._replicated:
            pending.published = in_thread(
                lambda: self._publish(pending, [self._checkpoints.write_shard(step, copied)])
            )
        else:
            pending.shard = in_thread(lambda: self._checkpoints.write_shard(step, copied))
        self._pending = pending

    def flag(self, done: int) -> int:
        """What this rank has written, for the agreement after `done` steps: larger is less."""
        pending = self._pending
        if pending is not None and pending.shard is not None and not pending.shard.done():
            return FAR - pending.step
        return FAR - done

    def follow(self, flag: int) -> None:
        """Go on with what is written by now; `flag` is the largest of all ranks, or still 0."""
        pending = self._pending
        if pending is None:
            return
        if pending.published is not None:
            if pending.published.done():
                self.finish()
        elif flag and FAR - flag > pending.step:
            self._gather(pending)

    def finish(self) -> None:
        """Wait until the save that is on its way is done."""
        if self._pending is not None and self._pending.published is None:
            self._gather(self._pending)
        pending, self._pending = self._pending, None
        if pending is not None and pending.published is not None:
            self._outcomes.append(
                Outcome(
                    pending.step,
                    self._checkpoints.path(pending.step),
                    pending.best is not None,
                    time.monotonic() - pending.began,
                    pending.published.result(),
                )
            )

    def idle(self) -> bool:
        """Whether this rank's thread has nothing to do."""
        return all(future.done() for future in self._futures())

    def wait_alone(self) -> None:
        """Let this rank's thread come to its end, before an error ends the process."""
        wait(self._futures())

    def _futures(self) -> list[Future[Any]]:
        pending = self._pending
        both = (None, None) if pending is None else (pending.shard, pending.published)
        return [future for future in both if future is not None]

    def outcomes(self) -> list[Outcome]:
        """On rank 0, of the saves that have ended since the last call."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _gather(self, pending: Pending) -> None:
        """All files are written: the rest is for rank 0."""
        assert pending.shard is not None
        shards = gather(self._world, pending.shard.result())
        if self._world.main:
            pending.published = in_thread(lambda: self._publish(pending, shards))
        else:
            self._pending = None

    def _publish(self, pending: Pending, shards: Sequence[State | str | None]) -> list[str]:
        return self._checkpoints.publish(pending.step, shards, pending.facts, pending.best)


def in_thread(work: Callable[[], T]) -> Future[T]:
    """What `work` will have returned; a process that is told to end at once doesn't wait for it."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="checkpoint").start()
    return future
