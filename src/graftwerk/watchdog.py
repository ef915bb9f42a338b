"""Notices that nothing moves any more, writes every rank's stacks, and ends the process.

The loop writes a number after each step; a thread looks whether it changes. Whoever notices a hang
first tells the others, so that every rank that lives writes where it stands. Then the process ends
with the code that has launchers start it again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwerk.axes import World
from graftwerk.board import SILENT, Board
from graftwerk.distributed import shorten_timeout
from graftwerk.errors import AGAIN, APART
from graftwerk.pace import Pace
from graftwerk.run import Faults

MEMORY = 64
"""Steps whose median counts."""


@dataclass(frozen=True)
class Patience:
    """How long nothing may move."""

    steps: float
    """In median steps."""
    floor: float
    """Seconds, however short a step is."""
    slow: float
    """Seconds at the start, and around what is no step."""


def guarding(faults: Faults, folder: Path, world: World) -> Watchdog:
    patience = None
    if faults.hang is not None:
        patience = Patience(faults.hang, faults.hang_floor, faults.start_timeout)
    return Watchdog(folder, world, patience)


class Watchdog:
    """Of one rank; without `patience` it sleeps."""

    def __init__(self, folder: Path, world: World, patience: Patience | None) -> None:
        self.done = 0
        """Steps."""
        self.doing = "starting"
        """What may take its time; empty while steps follow each other."""
        self.pace = Pace(world.device)
        self._path = folder / "stacks" / f"rank-{world.rank}.txt"
        self._world, self._patience = world, patience
        self._durations: deque[float] = deque(maxlen=MEMORY)
        self._ended = threading.Event()
        self._board: Board | None = None
        if world.store is not None:
            self._board = Board(world, world.store, lambda: (self.done, self.doing, self.pace.busy))

    @contextmanager
    def watching(self) -> Generator[None]:
        interval = 1.0
        if self._patience is not None:
            interval = min(interval, self._patience.floor / 10)
            watch = threading.Thread(target=self._watch, args=(self._patience, interval))
            watch.daemon = True
            watch.start()
        if self._board is not None:
            self._board.start(interval)
        try:
            yield
        finally:
            self._ended.set()
            if self._board is not None:
                self._board.stop()

    def moved(self, done: int) -> None:
        """Another step is done."""
        self.done, self.doing = done, ""

    @contextmanager
    def slowly(self, doing: str) -> Generator[None]:
        """Around what is no step, and may take as long as a start."""
        before, self.doing = self.doing, doing
        try:
            yield
        finally:
            self.doing = before

    def news(self) -> list[dict[str, Any]]:
        """On rank 0, what is to be told of ranks that are slow."""
        return self._board.news() if self._board is not None else []

    def _watch(self, patience: Patience, interval: float) -> None:
        seen, since = (self.done, self.doing), time.monotonic()
        looked = since
        while not self._ended.wait(interval):
            now, found = time.monotonic(), (self.done, self.doing)
            stopped, looked = now - looked > max(SILENT, 5 * interval), now
            if found != seen or stopped:  # or this process was, and its clock went on
                if found[0] > seen[0] and not (found[1] or seen[1] or stopped):
                    if not self._durations:
                        shorten_timeout(max(2 * patience.floor, patience.slow / 2))
                    self._durations.append((now - since) / (found[0] - seen[0]))
                seen, since = found, now
            elif now - since > self._limit(patience):
                self._give_up(f"nothing has moved for {now - since:.0f} s")
            elif self._board is not None and self._board.alarm is not None:
                self._give_up(f"{self._board.alarm} says that nothing moves")

    def _limit(self, patience: Patience) -> float:
        if self.doing or not self._durations:
            return max(patience.slow, patience.floor)
        return max(patience.floor, patience.steps * statistics.median(self._durations))

    def _give_up(self, reason: str) -> None:
        doing = f", {self.doing}" if self.doing else ""
        rank, host = self._world.rank, socket.gethostname()
        said = f"rank {rank} on {host}, after step {self.done}{doing}: {reason}"
        self._write_stacks(said)
        others = self._hear_the_others()
        with contextlib.suppress(OSError), self._path.open("a") as file:
            file.write(f"\n{others}\n")
        print(f"{said}; {others}; the stacks are in {self._path}", file=sys.stderr, flush=True)
        if self._world.main:  # the store may end with this process
            time.sleep(1.0)
        elastic = self._world.control is not None and self._world.store is None
        os._exit(APART if elastic else AGAIN)

    def _write_stacks(self, said: str) -> None:
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("w") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {said}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)

    def _hear_the_others(self) -> str:
        if self._board is None:
            return "it ends, to be started again"
        self._board.call()
        deadline = time.monotonic() + 2 * SILENT
        while time.monotonic() < deadline and len(self._board.reported) < self._world.size:
            time.sleep(0.05)
        return self._board.missing()
