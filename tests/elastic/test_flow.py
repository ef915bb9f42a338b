"""One direction of a TCP connection whose other end takes its time."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from graftwerk.elastic.flow import LARGE, LEAST, Flow

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="flows are paced on Linux only")


@pytest.fixture
def connection() -> Generator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        yield near, far


def numbers(size: int) -> memoryview:
    return torch.randint(256, (size,), dtype=torch.uint8).numpy().data


def read_slowly(source: socket.socket, size: int, rate: float) -> bytes:
    """`size` bytes at `rate` bytes per second."""
    found = bytearray()
    while len(found) < size:
        found += source.recv(min(1 << 14, size - len(found)))
        time.sleep((1 << 14) / rate)
    return bytes(found)


def test_bodies_arrive_and_little_is_under_way(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    """The first body fills the buffers; those after it know the rate."""
    near, far = connection
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    under_way: list[int] = []

    def look() -> None:
        count = fcntl.ioctl(near, termios.TIOCOUTQ, bytes(4))
        under_way.append(struct.unpack("i", count)[0])

    flow = Flow(near, look)
    with ThreadPoolExecutor(1) as pool:
        for body in (numbers(6 * LARGE), numbers(100), numbers(6 * LARGE)):
            found = pool.submit(read_slowly, far, len(body), 4e6)
            under_way.clear()
            flow.send(body)
            assert found.result() == body.tobytes()
    assert len(under_way) > 4
    assert max(under_way) <= max(LEAST, 4e6 * 0.1)


def test_a_flow_whose_other_end_is_gone_ends(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    near, far = connection
    flow = Flow(near, lambda: None)
    reader = threading.Thread(target=lambda: read_slowly(far, LARGE, 4e6))
    reader.start()
    flow.send(numbers(LARGE))
    reader.join()
    threading.Timer(0.1, far.shutdown, [socket.SHUT_RDWR]).start()
    threading.Timer(0.2, far.close).start()
    with pytest.raises(OSError, match=r"broken|reset|Broken"):
        flow.send(numbers(64 * LARGE))
