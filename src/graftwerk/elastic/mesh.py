"""Direct connections between workers, over which a dead or a slow one takes nobody along.

gloo and NCCL groups are unusable once a member is gone. Here every pair of workers has a TCP
connection of its own in each direction, opened when it is first needed. One thread per connection
sends frames from a queue, so that nobody waits for the network but those who want its data; one
thread per connection receives.

A frame is a header (channel, two numbers, length) and bytes. A connection starts with a secret that
only workers of the run know; data of strangers is never looked at.
"""

from __future__ import annotations

import contextlib
import hmac
import queue
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from graftwerk.elastic.flow import Flow

Address = tuple[str, int]
HELLO = struct.Struct("<32sQ")
HEADER = struct.Struct("<BqqQ")
MAIL = 0
"""The channel of `receive`; the others have handlers."""
SPARE = 256
"""Pieces of memory of one size that are kept."""
PIECE = 1 << 20
"""Bytes read at once, so that progress can be seen."""


class LostError(Exception):
    """A worker can't be reached any more."""

    def __init__(self, uid: int) -> None:
        super().__init__(f"worker {uid} is lost")
        self.uid = uid


class Frame(NamedTuple):
    sender: int
    channel: int
    first: int
    second: int
    body: Tensor
    """Bytes [n], uint8 on the CPU."""


@dataclass
class Parcel:
    """A frame on its way out."""

    header: bytes
    body: Tensor | None
    ready: Callable[[], object] | None
    """Called before the body is read: waits for a copy from a GPU."""


@dataclass
class Line:
    """The outgoing connection to one worker."""

    address: Address
    parcels: queue.SimpleQueue[Parcel | None] = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread | None = None
    waiting: int = 0
    """Frames not yet handed to the kernel."""


class Mesh:
    """This worker's end of all connections. `changed` guards its state and is notified of news."""

    def __init__(self, uid: int, host: str, secret: bytes, timeout: float) -> None:
        self.uid = uid
        self.changed = threading.Condition(threading.RLock())
        self.lost: set[int] = set()
        self.moved: dict[int, float] = defaultdict(float)
        """When bytes last came from each worker or went to it: seconds of the monotonic clock."""
        self.bytes_sent = 0
        self._secret = secret
        self._timeout = timeout
        self._lines: dict[int, Line] = {}
        self._mail: dict[tuple[int, int, int], Tensor] = {}
        self._handlers: dict[int, Callable[[Frame], None]] = {}
        self._unhandled: list[Frame] = []
        self._spare: dict[int, list[Tensor]] = defaultdict(list)
        """Memory to receive into again, by size: fresh pages cost more than the copy."""
        self._closing = False
        self._incoming: list[socket.socket] = []
        self._listener = socket.create_server((host, 0), backlog=128)
        self.address: Address = (host, self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    # ------------------------------------------------------------ sending

    def meet(self, uid: int, address: Address) -> None:
        """Know where a worker listens; connected when there is something to send."""
        with self.changed:
            self._lines.setdefault(uid, Line(address))

    def send(
        self,
        uid: int,
        channel: int,
        first: int,
        second: int,
        body: Tensor | None = None,
        ready: Callable[[], object] | None = None,
    ) -> None:
        """Queue a frame; `body` (uint8, CPU, contiguous) must not change until `all_sent`."""
        size = 0 if body is None else body.numel()
        with self.changed:
            line = self._lines[uid]
            if uid in self.lost or self._closing:
                return
            line.waiting += 1
            line.parcels.put(Parcel(HEADER.pack(channel, first, second, size), body, ready))
            if line.thread is None:
                line.thread = threading.Thread(target=self._speak, args=(uid, line), daemon=True)
                line.thread.start()

    def all_sent(self) -> bool:
        """Whether all that was queued is on its way, or never will be."""
        with self.changed:
            return all(line.waiting == 0 or uid in self.lost for uid, line in self._lines.items())

    def _speak(self, uid: int, line: Line) -> None:
        try:
            with socket.create_connection(line.address, timeout=self._timeout) as out:
                out.settimeout(None)
                self._tune(out)
                out.sendall(HELLO.pack(self._secret, self.uid))
                flow = Flow(out, lambda: self._note_progress(uid))
                while (parcel := line.parcels.get()) is not None:
                    if parcel.ready is not None:
                        parcel.ready()
                    out.sendall(parcel.header)
                    if parcel.body is not None:
                        flow.send(parcel.body.numpy().data)
                    with self.changed:
                        size = 0 if parcel.body is None else parcel.body.numel()
                        self.bytes_sent += HEADER.size + size
                        line.waiting -= 1
                        self.changed.notify_all()
        except OSError:
            self.lose(uid)

    def _tune(self, connection: socket.socket) -> None:
        """No waiting for larger packets; a peer that acknowledges nothing is given up."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            milliseconds = int(self._timeout * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    # ------------------------------------------------------------ receiving

    def handle(self, channel: int, handler: Callable[[Frame], None]) -> None:
        """Call `handler` with each frame of `channel`, under `changed`, on the receiving thread."""
        with self.changed:
            self._handlers[channel] = handler
            early = [frame for frame in self._unhandled if frame.channel == channel]
            self._unhandled = [frame for frame in self._unhandled if frame.channel != channel]
            for frame in early:
                handler(frame)

    def receive(self, uid: int, first: int, second: int, *, bored: Callable[[], bool]) -> Tensor:
        """The body of a frame of channel `MAIL`.

        Raises `LostError` once the sender can't be reached, or `bored()` says so.
        """
        key = (uid, first, second)
        with self.changed:
            while key not in self._mail:
                if uid in self.lost or bored():
                    raise LostError(uid)
                self.changed.wait(0.1)
            return self._mail.pop(key)

    def discard(self, before: int) -> None:
        """Forget mail whose first number is below `before`: of exchanges that failed."""
        with self.changed:
            for key in [key for key in self._mail if key[1] < before]:
                del self._mail[key]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._listen, args=(connection,), daemon=True).start()

    def _listen(self, connection: socket.socket) -> None:
        uid: int | None = None
        try:
            self._tune(connection)
            with self.changed:
                self._incoming.append(connection)
            secret, sender = HELLO.unpack(_read(connection, _bytes(HELLO.size)).numpy().tobytes())
            if not hmac.compare_digest(secret, self._secret):
                return
            uid = sender
            while True:
                header = _read(connection, _bytes(HEADER.size)).numpy().tobytes()
                channel, first, second, size = HEADER.unpack(header)
                body = _read(connection, self._memory(size), self._note_progress, sender)
                self._deliver(Frame(sender, channel, first, second, body))
        except OSError:
            pass
        finally:
            connection.close()
            if uid is not None:
                self.lose(uid)

    def recycle(self, bodies: Iterable[Tensor]) -> None:
        """Receive into this memory again: nobody else looks at it any more."""
        with self.changed:
            for body in bodies:
                if len(self._spare[body.numel()]) < SPARE:
                    self._spare[body.numel()].append(body)

    def _memory(self, size: int) -> Tensor:
        with self.changed:
            spare = self._spare.get(size)
            return spare.pop() if spare else _bytes(size)

    def _note_progress(self, uid: int) -> None:
        self.moved[uid] = time.monotonic()

    def _deliver(self, frame: Frame) -> None:
        with self.changed:
            self.moved[frame.sender] = time.monotonic()
            if frame.channel == MAIL:
                self._mail[frame.sender, frame.first, frame.second] = frame.body
            elif frame.channel in self._handlers:
                self._handlers[frame.channel](frame)
            else:
                self._unhandled.append(frame)
            self.changed.notify_all()

    # ------------------------------------------------------------ the end

    def lose(self, uid: int) -> None:
        """Never wait for this worker again; it may come back under another number."""
        with self.changed:
            self.lost.add(uid)
            line = self._lines.get(uid)
            if line is not None:
                line.parcels.put(None)
            self.changed.notify_all()

    def close(self, linger: float = 5.0) -> None:
        """Send what is queued, for at most `linger` seconds, and disconnect."""
        deadline = time.monotonic() + linger
        with self.changed:
            self.changed.wait_for(self.all_sent, deadline - time.monotonic())
            self._closing = True
            for line in self._lines.values():
                line.parcels.put(None)
        for connection in [self._listener, *self._incoming]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _read(
    connection: socket.socket,
    body: Tensor,
    progress: Callable[[int], None] | None = None,
    sender: int = 0,
) -> Tensor:
    """`body`, filled; `ConnectionError` where the other end is gone before."""
    view, done = body.numpy().data, 0
    while done < len(view):
        count = connection.recv_into(view[done : done + PIECE])
        if not count:
            raise ConnectionError("closed by the other end")
        done += count
        if progress is not None:
            progress(sender)
    return body


def _bytes(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> Tensor:
    """The same memory as uint8 [n]; `tensor` is contiguous and on the CPU."""
    return tensor.reshape(-1).view(torch.uint8)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """All elements of all tensors, one after the other."""
    return torch.cat([part.reshape(-1) for part in parts])
