"""Ports for those who will listen a moment later, in a process that imports for seconds first."""

from __future__ import annotations

import random
import socket

RANGE = range(10_000, 32_768)
"""Below the ports that systems hand out to whoever asks for any: none is taken meanwhile."""


def free_port() -> int:
    """At which nobody listens."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many different ones."""
    found: list[int] = []
    draw = random.SystemRandom()  # training's generators are not for this
    while len(found) < count:
        port = draw.choice(RANGE)
        if port not in found and is_free(port):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    """Whether nobody listens there, on any interface."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
        return True
