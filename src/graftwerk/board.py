"""What the ranks of a fixed group tell each other through their store, in a thread of its own.

Where they stand, who is slow, and that somebody has noticed a hang. The store may hang with the
rank that holds it: then this thread does, and nobody else.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from graftwerk.axes import World
from graftwerk.elastic.meeting import another
from graftwerk.pace import Stragglers

SILENT = 5.0
"""Seconds that a store or a rank may take to answer."""


@dataclass(frozen=True)
class Position:
    """Of a rank."""

    host: str
    done: int
    doing: str
    busy: float

    def __str__(self) -> str:
        return f"after step {self.done}" + (f", {self.doing}" if self.doing else "")


class Board:
    """`mine` returns this rank's (steps done, what is being done, busy seconds)."""

    def __init__(self, world: World, store: Store, mine: Callable[[], tuple[int, str, float]]):
        self._world, self._mine = world, mine
        self._store = another(store)
        self._ended = threading.Event()
        self._stragglers = Stragglers()
        self._told: list[dict[str, Any]] = []
        self._calls = False
        self.alarm: str | None = None
        """Who has noticed a hang."""
        self.positions: dict[int, Position] = {}
        """After an alarm, of all ranks; before, only rank 0 asks for them."""
        self.reported: set[int] = set()
        """Ranks that have heard of the alarm, and written their stacks."""
        self.reached = time.monotonic()
        """When the store last answered."""

    def start(self, interval: float) -> None:
        # All ranks together ask the store no more than some hundred times a second.
        interval = max(interval, self._world.size / 100)
        threading.Thread(target=self._run, args=(interval,), daemon=True, name="board").start()

    def stop(self) -> None:
        self._ended.set()

    def call(self) -> None:
        """Tell the others that nothing moves, and that this rank has written its stacks."""
        self._calls = True

    def missing(self) -> str:
        """After an alarm, a sentence on who did not answer, or else on who is behind."""
        if time.monotonic() - self.reached > SILENT:
            return "the store does not answer: the process that holds it, or its host, is stopped"
        silent = {r: p for r, p in self.positions.items() if r not in self.reported}
        if silent:
            said = [f"rank {rank} on {at.host}, last seen {at}" for rank, at in silent.items()]
            return f"no answer from {'; '.join(said)}: stopped, dead or cut off"
        last = min(at.done for at in self.positions.values()) if self.positions else 0
        behind = [f"rank {r} on {p.host} {p}" for r, p in self.positions.items() if p.done == last]
        return f"all ranks answer; furthest behind: {'; '.join(behind)}" if behind else ""

    def news(self) -> list[dict[str, Any]]:
        """On rank 0, the stragglers that were found since the last call."""
        told, self._told = self._told, []
        return told

    def _run(self, interval: float) -> None:
        host, rank = socket.gethostname(), self._world.rank
        while not self._ended.wait(interval):
            try:
                self._store.set(f"at/{rank}", json.dumps([host, *self._mine()]))
                self._exchange()
            except RuntimeError:  # the store is gone, and `reached` says since when
                return
            self.reached = time.monotonic()

    def _exchange(self) -> None:
        rank = self._world.rank
        if self._calls:
            self._store.compare_set("alarm", "", f"rank {rank} on {socket.gethostname()}")
            self._store.set(f"stacks/{rank}", "")
            self.reported = {
                r for r in range(self._world.size) if self._store.check([f"stacks/{r}"])
            }
        if self._calls or self._world.main:
            self.positions = self._read()
        if self._world.main and len(self.positions) == self._world.size:
            self._look_for_stragglers()
        if self.alarm is None and self._store.check(["alarm"]):
            self.alarm = self._store.get("alarm").decode()

    def _read(self) -> dict[int, Position]:
        found = {r: f"at/{r}" for r in range(self._world.size) if self._store.check([f"at/{r}"])}
        texts = self._store.multi_get(list(found.values()))
        return {r: Position(*json.loads(text)) for r, text in zip(found, texts, strict=True)}

    def _look_for_stragglers(self) -> None:
        now = {rank: (at.done, at.busy) for rank, at in self.positions.items()}
        for rank, times in self._stragglers.update(now).items():
            host = self.positions[rank].host
            reason = f"rank {rank} on {host} takes {times:.1f} times as long as the others"
            self._told.append({"slow_rank": rank, "host": host, "reason": reason})
