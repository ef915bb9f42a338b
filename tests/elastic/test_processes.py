"""Groups of real processes that are killed, stopped and cut off."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Generator, Mapping
from multiprocessing.context import ForkServerProcess

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from gathering import gathering
from graftwerk.errors import APART
from running import fork_server

SIZE, TIMEOUT = 4, 5.0
PATIENT = 300.0
"""Of what must happen, on the slowest machine."""


class Workers:
    """Child processes that gather, and the store they meet in."""

    def __init__(self) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.children: list[ForkServerProcess] = []

    def start(self, ports: Mapping[int, int], timeout: float = TIMEOUT) -> None:
        """All workers; the store is at another port for some."""
        for rank in range(SIZE):
            port = ports.get(rank, self.store.port)
            child = fork_server().Process(
                target=gathering,
                args=(rank, SIZE, port, timeout),
                kwargs={"reports": rank not in ports},
            )
            child.start()
            self.children.append(child)
        self.until_seen("0 1 2 3", [rank for rank in range(SIZE) if rank not in ports])

    def until_seen(self, members: str, by: range | list[int]) -> float:
        """Wait until these workers agree on their members; the seconds it took."""
        began = time.monotonic()
        keys = [f"seen by {rank}" for rank in by]
        while not self.store.check(keys) or any(
            self.store.get(key).decode() != members for key in keys
        ):
            assert time.monotonic() - began < PATIENT, self.said(keys)
            time.sleep(0.01)
        return time.monotonic() - began

    def said(self, keys: list[str]) -> dict[str, bytes]:
        keys = [*keys, *(f"error of {rank}" for rank in range(SIZE))]
        return {key: self.store.get(key) for key in keys if self.store.check([key])}

    def signal(self, rank: int, number: int) -> None:
        pid = self.children[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def code(self, rank: int) -> int | None:
        """The exit code; None where the process does not end."""
        self.children[rank].join(PATIENT)
        return self.children[rank].exitcode

    def end(self) -> None:
        for child in self.children:
            child.kill()
            child.join()


@pytest.fixture
def workers() -> Generator[Workers]:
    found = Workers()
    yield found
    found.end()


def test_killed_workers_are_missed(workers: Workers) -> None:
    """One after the other may go, the first one included."""
    workers.start({})
    workers.signal(0, signal.SIGKILL)
    workers.until_seen("1 2 3", [1, 2, 3])
    workers.signal(2, signal.SIGKILL)
    workers.until_seen("1 3", [1, 3])
    workers.store.set("stop", "")
    assert [workers.code(rank) for rank in (1, 3)] == [0, 0]


def test_a_stopped_worker_is_given_up_and_stops_when_it_wakes(workers: Workers) -> None:
    workers.start({})
    workers.signal(1, signal.SIGSTOP)
    assert workers.until_seen("0 2 3", [0, 2, 3]) >= TIMEOUT / 2
    workers.signal(1, signal.SIGCONT)
    assert workers.code(1) == APART
    assert b"gone on without this worker" in workers.store.get("error of 1")
    workers.store.set("stop", "")
    assert [workers.code(rank) for rank in (0, 2, 3)] == [0, 0, 0]


def test_a_minority_stops(workers: Workers) -> None:
    """Three of four fall silent, and may be alive elsewhere: the last one must not go on."""
    workers.start({})
    workers.store.set("hold", "")
    workers.store.wait([f"holding {rank}" for rank in (0, 1, 3)])
    for rank in (0, 1, 3):
        workers.signal(rank, signal.SIGSTOP)
    assert workers.code(2) == APART
    assert b"only 1 of 4 workers" in workers.store.get("error of 2")


def test_a_pause_of_all_harms_nobody(workers: Workers) -> None:
    """As when a terminal's job is suspended: silence that one slept through does not count."""
    timeout = 3.0
    workers.start({}, timeout=timeout)
    for rank in range(SIZE):
        workers.signal(rank, signal.SIGSTOP)
    time.sleep(2 * timeout)
    for rank in range(SIZE):
        workers.signal(rank, signal.SIGCONT)
    time.sleep(1.5 * timeout)
    workers.until_seen("0 1 2 3", range(SIZE))
    workers.store.set("stop", "")
    assert [workers.code(rank) for rank in range(SIZE)] == [0] * SIZE


def test_who_is_cut_off_from_the_store_stops(workers: Workers) -> None:
    relay = Relay(workers.store.port)
    workers.start({3: relay.port})
    relay.cut.set()
    workers.until_seen("0 1 2", [0, 1, 2])
    assert workers.code(3) == APART
    workers.store.set("stop", "")
    assert [workers.code(rank) for rank in (0, 1, 2)] == [0, 0, 0]


class Relay:
    """A port that leads to another one, until it is cut: then nothing passes any more."""

    def __init__(self, to: int) -> None:
        self.cut = threading.Event()
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._to))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(1 << 16):
            if self.cut.is_set():
                return
            target.sendall(data)
        target.close()
