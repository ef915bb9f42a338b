"""Pairwise exchanges that happen at both ends or at neither, one after the other.

**A link carries one exchange at a time.** A worker's pieces leave when the other one has said that
it is in the same step too, and neither goes on before both have everything. Otherwise those who are
ahead would share the links of those who are behind with the data that these wait for, and who is
behind would fall back further.

**Both ends or neither.** If only one of two workers mixed, the mean of all replicas would be lost.
So the worker with the lower number decides: it commits as soon as both have everything, and says
so; or, when its patience is over, it cancels and says that. The other one waits for this word; when
*its* patience is over it asks to withdraw, which the first grants unless it has committed before.
Both ends then keep to themselves for this step: W loses the edge in both rows, and stays doubly
stochastic. A worker that does not even answer is given up for good.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from torch import Tensor

from graftwerk.elastic.mesh import Frame, Mesh

READY, DATA, ARRIVED, COMMIT, CANCEL, WITHDRAW = KINDS = range(6)
PARAMETERS, GRADIENTS = 2, 8
"""The first of the mesh's channels for all `KINDS` of frames about these."""
ERA = 40
"""Bits of a step's number."""


@dataclass
class Exchange:
    """With one worker in one step."""

    welcome: bool = False
    """Whether the other one is in this step."""
    held: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    """What to send once it is."""
    published: int = 0
    received: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    arrived: bool = False
    """Whether the other one has everything."""
    refused: bool = False
    """By this worker, which has nothing to compare with what comes."""
    happens: bool | None = None


class Exchanges:
    """All exchanges of this worker; each consists of `num_pieces` pieces both ways."""

    def __init__(
        self,
        mesh: Mesh,
        num_pieces: int,
        patience: float,
        is_lost: Callable[[int], bool],
        *,
        about: int = PARAMETERS,
        era: int = 0,
    ) -> None:
        """`era` grows where steps are made again, so that what was sent before is known by it."""
        self._first = era << ERA
        self._mesh = mesh
        self._about = about
        self._num_pieces = num_pieces
        self._patience = patience
        self._is_lost = is_lost
        self._open: dict[tuple[int, int], Exchange] = {}
        self._over = -1
        """Steps up to this one are done with."""
        self.bytes_sent = 0

    def listen(self, step: int) -> None:
        """Start with the exchanges of `step`; those of before are done with."""
        self._over = step - 1
        for kind in KINDS:
            self._mesh.handle(self._about + kind, self._hear)

    def begin(self, step: int, uid: int) -> None:
        """Tell a worker that this one is in `step`."""
        self._say(uid, READY, step)

    def publish(
        self,
        step: int,
        uid: int,
        number: int,
        body: Tensor,
        ready: Callable[[], object] | None = None,
    ) -> None:
        """Send a piece of this worker's data for `step`, unless the other one has cancelled.

        Bytes, which must not change before `all_sent`; `ready` is called before they are read.
        """

        def send() -> None:
            self._mesh.send(uid, self._about + DATA, self._first + step, number, body, ready)
            self.bytes_sent += body.numel()

        with self._mesh.changed:
            exchange = self._of(uid, step)
            if exchange.happens is False:
                return
            exchange.held.append(send)
            exchange.published += 1
            self._advance(uid, step, exchange)

    def refuse(self, step: int, uid: int) -> None:
        """Keep to oneself in `step`, before all pieces are published; the other end hears of it."""
        with self._mesh.changed:
            exchange = self._of(uid, step)
            exchange.refused = True
            if exchange.happens is None and self._decides(uid):
                self._settle(uid, step, exchange, happens=False)
            elif exchange.happens is None:
                self._say(uid, WITHDRAW, step)

    def all_sent(self) -> bool:
        """Whether nobody will look at what was published for closed steps any more."""
        return self._mesh.all_sent()

    def arriving(self, step: int, uid: int) -> Generator[Tensor]:
        """The other worker's pieces in order, as they come; fewer where the exchange fails."""
        for number in range(self._num_pieces):
            exchange = self._wait(
                step, uid, lambda exchange, n=number: exchange.refused or n in exchange.received
            )
            if exchange.refused or exchange.happens is False:
                return
            yield exchange.received[number]

    def happens(self, step: int, uid: int) -> bool:
        """Whether both mix, or both keep to themselves.

        Waits as long as data is moving, and then for `patience` seconds.
        """
        return bool(self._wait(step, uid, lambda _: False).happens)

    def close(self, step: int) -> None:
        """This worker has left `step`, and needs its data no more; what comes late is dropped."""
        with self._mesh.changed:
            self._over = step
            for (_, number), exchange in self._open.items():
                if number == step:
                    self._mesh.recycle(exchange.received.values())
            self._open = {key: item for key, item in self._open.items() if key[1] > step}

    def _wait(self, step: int, uid: int, enough: Callable[[Exchange], bool]) -> Exchange:
        """Until it is decided whether the exchange happens, or there is `enough` of it."""
        with self._mesh.changed:
            exchange, asked, began = self._of(uid, step), False, time.monotonic()
            while exchange.happens is None and not enough(exchange):
                if self._is_lost(uid):
                    exchange.happens = False
                elif time.monotonic() - max(began, self._mesh.moved[uid]) < self._patience:
                    self._mesh.changed.wait(min(0.05, self._patience))
                elif self._decides(uid):
                    self._settle(uid, step, exchange, happens=False)
                else:
                    if not asked:
                        self._say(uid, WITHDRAW, step)
                    asked = True
                    self._mesh.changed.wait(0.05)
            return exchange

    def _of(self, uid: int, step: int) -> Exchange:
        return self._open.setdefault((uid, step), Exchange())

    def _decides(self, uid: int) -> bool:
        return self._mesh.uid < uid

    def _hear(self, frame: Frame) -> None:
        uid, kind = frame.sender, frame.channel - self._about
        step = frame.first - self._first
        if step <= self._over:
            return  # decided, and the other end was told
        exchange = self._of(uid, step)
        if kind == READY:
            exchange.welcome = True
        elif kind == DATA:
            exchange.received[frame.second] = frame.body
        elif kind == ARRIVED:
            exchange.arrived = True
        elif kind == WITHDRAW:
            if exchange.happens is None:
                self._settle(uid, step, exchange, happens=False)
        else:
            exchange.happens = kind == COMMIT
        self._advance(uid, step, exchange)

    def _advance(self, uid: int, step: int, exchange: Exchange) -> None:
        """Send what may leave; once all is here, say so or commit."""
        if exchange.happens is not None:
            return
        if exchange.welcome:
            for send in exchange.held:
                send()
            exchange.held.clear()
        if min(exchange.published, len(exchange.received)) < self._num_pieces:
            return
        if not self._decides(uid):
            self._say(uid, ARRIVED, step)
        elif exchange.arrived:
            self._settle(uid, step, exchange, happens=True)

    def _say(self, uid: int, kind: int, step: int) -> None:
        self._mesh.send(uid, self._about + kind, self._first + step, 0)

    def _settle(self, uid: int, step: int, exchange: Exchange, *, happens: bool) -> None:
        exchange.happens = happens
        self._say(uid, COMMIT if happens else CANCEL, step)
