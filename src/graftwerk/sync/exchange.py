"""Pairwise exchanges that happen at both ends or at neither.

If only one of two workers mixed, the mean of all replicas would be lost. So the worker with the
lower number decides: it commits as soon as it has sent its own data and holds all of the other's,
and says so; or, when its patience is over, it cancels and says that. The other one waits for this
word; when *its* patience is over it asks to withdraw, which the first grants unless it has
committed before. Both ends then keep to themselves for this step: W loses the edge in both rows,
and stays doubly stochastic. A worker that does not even answer is given up for good.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from graftwerk.elastic.mesh import Frame, Mesh

DATA, COMMIT, CANCEL, WITHDRAW = range(2, 6)
"""Channels of the mesh."""


@dataclass
class Exchange:
    """With one worker in one step."""

    published: bool = False
    received: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    happens: bool | None = None


class Exchanges:
    """All exchanges of this worker; each consists of `num_buckets` pieces both ways."""

    def __init__(
        self, mesh: Mesh, num_buckets: int, patience: float, is_lost: Callable[[int], bool]
    ) -> None:
        self._mesh = mesh
        self._num_buckets = num_buckets
        self._patience = patience
        self._is_lost = is_lost
        self._open: dict[tuple[int, int], Exchange] = {}
        self._over = -1
        """Steps up to this one are done with."""
        self.bytes_sent = 0

    def listen(self, step: int) -> None:
        """Start with the exchanges of `step`; those of before are done with."""
        self._over = step - 1
        for channel in (DATA, COMMIT, CANCEL, WITHDRAW):
            self._mesh.handle(channel, self._hear)

    def publish(
        self,
        step: int,
        uid: int,
        buckets: Sequence[Tensor],
        ready: Callable[[], object] | None = None,
    ) -> None:
        """Send this worker's data for `step`, unless the other one has cancelled already.

        Bytes, which must not change any more; `ready` is called before they are read.
        """
        with self._mesh.changed:
            exchange = self._of(uid, step)
            if exchange.happens is False:
                return
            for number, bucket in enumerate(buckets):
                self._mesh.send(uid, DATA, step, number, bucket, ready)
                self.bytes_sent += bucket.numel()
            exchange.published = True
            self._commit_if_complete(uid, step, exchange)

    def all_sent(self) -> bool:
        """Whether nobody will look at what was published any more."""
        return self._mesh.all_sent()

    def collect(self, step: int, uid: int) -> list[Tensor] | None:
        """The other worker's data for `step`; None where both keep to themselves.

        Waits as long as data is arriving, and then for `patience` seconds.
        """
        with self._mesh.changed:
            exchange, asked, began = self._of(uid, step), False, time.monotonic()
            while exchange.happens is None:
                if self._is_lost(uid):
                    exchange.happens = False
                elif time.monotonic() - max(began, self._mesh.heard[uid]) < self._patience:
                    self._mesh.changed.wait(min(0.05, self._patience))
                elif self._mesh.uid < uid:
                    self._settle(uid, step, exchange, happens=False)
                else:
                    if not asked:
                        self._mesh.send(uid, WITHDRAW, step, 0)
                    asked = True
                    self._mesh.changed.wait(0.05)
            if not exchange.happens:
                return None
            return [exchange.received[number] for number in range(self._num_buckets)]

    def close(self, step: int) -> None:
        """This worker has left `step`, and needs its data no more; what comes late is dropped."""
        with self._mesh.changed:
            self._over = step
            for (_, number), exchange in self._open.items():
                if number == step:
                    self._mesh.recycle(exchange.received.values())
            self._open = {key: item for key, item in self._open.items() if key[1] > step}

    def _of(self, uid: int, step: int) -> Exchange:
        return self._open.setdefault((uid, step), Exchange())

    def _hear(self, frame: Frame) -> None:
        uid, step = frame.sender, frame.first
        if step <= self._over:
            return  # decided, and the other end was told
        exchange = self._of(uid, step)
        if frame.channel == DATA:
            exchange.received[frame.second] = frame.body
            self._commit_if_complete(uid, step, exchange)
        elif frame.channel == WITHDRAW:
            if exchange.happens is None:
                self._settle(uid, step, exchange, happens=False)
        else:
            exchange.happens = frame.channel == COMMIT

    def _commit_if_complete(self, uid: int, step: int, exchange: Exchange) -> None:
        complete = exchange.published and len(exchange.received) == self._num_buckets
        if complete and exchange.happens is None and self._mesh.uid < uid:
            self._settle(uid, step, exchange, happens=True)

    def _settle(self, uid: int, step: int, exchange: Exchange, *, happens: bool) -> None:
        exchange.happens = happens
        self._mesh.send(uid, COMMIT if happens else CANCEL, step, 0)
