"""What went wrong and what was done about it, of all ranks, as events of one log.

Rank 0 writes the log. What another rank has to say waits for the next `gather`.
"""

from __future__ import annotations

from typing import Any

from graftwerk.axes import World
from graftwerk.distributed import gather
from graftwerk.log.logbook import Logbook


class Ledger:
    """Of one rank; `logbook` is set on rank 0 alone."""

    def __init__(self, world: World) -> None:
        self.logbook: Logbook | None = None
        self._world = world
        self._waiting: list[tuple[str, dict[str, Any]]] = []
        self._images: set[str] = set()

    def event(self, name: str, **facts: Any) -> None:
        """What all ranks know, written by rank 0."""
        if self.logbook is not None:
            self.logbook.event(name, **facts)

    def own(self, name: str, **facts: Any) -> None:
        """What happened on this rank."""
        facts["rank"] = self._world.rank
        if self.logbook is not None:
            self.logbook.event(name, **facts)
        else:
            self._waiting.append((name, facts))

    def image_skipped(self, reason: str) -> None:
        """Named once, however many epochs meet it again."""
        if reason not in self._images:
            self._images.add(reason)
            self.own("image_skipped", reason=reason)

    def gather(self) -> None:
        """Write what waits on other ranks. A call of all ranks together."""
        if self._world.size == 1:
            return
        waiting, self._waiting = self._waiting, []
        for facts_of_rank in gather(self._world, waiting):
            for name, facts in facts_of_rank:
                self.event(name, **facts)
