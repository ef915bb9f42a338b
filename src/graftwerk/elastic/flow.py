"""Large bodies over TCP, of which little is under way at once.

A sender fills whatever buffers there are on the way. Where two workers send to each other over a
slow link, the acknowledgements of the one then wait behind the data of the other, and a window that
grows with acknowledgements takes many of these long round trips to open; a full buffer drops
packets on top. So a flow remembers how fast the last body went, and keeps no more under way than
the link carries in `QUEUE` seconds beyond two empty round trips: the link is never idle, and its
queue stays short (the thought behind BBR and LEDBAT). A link that has become faster doubles the
rate with every body until it is used.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable

QUEUE = 0.02
"""Seconds that a packet may wait for those before it."""
LARGE = 1 << 18
"""Bytes from which on a body is paced, and says something about the rate."""
LEAST = 1 << 16
"""Bytes that may always be under way."""
PIECE = 1 << 20
"""Bytes handed over at once, so that progress can be seen."""
FAST = 1e9
"""Bytes per second, as long as nothing is known."""
MIN_RTT = 148
"""Offset of `tcpi_min_rtt` (microseconds, 4 bytes) in Linux's `struct tcp_info`."""


class Flow:
    """One direction of a connection. Elsewhere than on Linux the kernel alone decides."""

    def __init__(self, connection: socket.socket, progress: Callable[[], None]) -> None:
        self._connection, self._progress = connection, progress
        self._rate: float | None = None
        """Bytes per second that were acknowledged while more were waiting; None: not known."""
        self._handed_over = 0
        self._since = time.monotonic(), 0
        """(seconds, bytes acknowledged) when the rate was looked at last, or the link was idle."""
        self._broken = select.poll()
        self._broken.register(connection, 0)  # errors are always reported

    def send(self, body: memoryview) -> None:
        """All of it is in the kernel's hands afterwards. Raises OSError where that can't be.

        `progress` is called whenever a piece is.
        """
        if sys.platform != "linux" or len(body) < LARGE:
            self._connection.sendall(body)
            return
        if self._under_way() < LEAST:
            self._since = time.monotonic(), self._handed_over
        window = self._window()
        piece = min(PIECE, window // 4)
        for first in range(0, len(body), piece):
            self._make_room(window - piece)
            part = body[first : first + piece]
            self._connection.sendall(part)
            self._handed_over += len(part)
            self._progress()
        if self._rate is None:
            self._make_room(0)
        self._learn()

    def _learn(self) -> None:
        now, acknowledged = time.monotonic(), self._handed_over - self._under_way()
        began, before = self._since
        if acknowledged - before >= LARGE:
            self._rate = (acknowledged - before) / (now - began)
            self._since = now, acknowledged

    def _window(self) -> int:
        """Bytes that may be under way."""
        if self._rate is None:
            return sys.maxsize
        return max(LEAST, int(self._rate * (QUEUE + 2 * self._empty_round_trip())))

    def _make_room(self, most: int) -> None:
        """Wait until at most so many bytes are under way."""
        while (excess := self._under_way() - most) > 0:
            if self._broken.poll(1e3 * min(QUEUE, excess / (self._rate or FAST))):
                raise ConnectionError("broken while data was under way")

    def _under_way(self) -> int:
        """Bytes in the kernel's hands that the other end has not acknowledged."""
        count = fcntl.ioctl(self._connection, termios.TIOCOUTQ, bytes(4))
        return struct.unpack("i", count)[0]

    def _empty_round_trip(self) -> float:
        """Seconds."""
        info = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, MIN_RTT + 4)
        return struct.unpack_from("I", info, MIN_RTT)[0] * 1e-6
