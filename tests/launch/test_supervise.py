"""Workers that are started again one by one; they are members of a group, and train nothing."""

from __future__ import annotations

import os
import signal
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from gathering import supervised
from running import end, fork_server, until

SIZE, TIMEOUT = 3, 5.0


def seen(folder: Path) -> list[tuple[int, str]]:
    """By slot: the number of its last process, and the members that this one sees."""
    found: list[tuple[int, str]] = []
    for slot in range(SIZE):
        file = folder / str(slot)
        lines = file.read_text().splitlines() if file.exists() else []
        number, _, members = (lines[-1] if lines else "0 ").partition(" ")
        found.append((int(number), members))
    return found


def processes_of_all(folder: Path, supervisor: ForkServerProcess, *, without: int = 0) -> list[int]:
    """Wait until all are members, none of them as process `without`; their numbers by slot."""

    def all_of_them() -> list[int]:
        assert supervisor.is_alive()
        numbers, members = zip(*seen(folder), strict=True)
        return list(numbers) if set(members) == {"0 1 2"} and without not in numbers else []

    return until(all_of_them)


def test_killed_and_stopped_workers_are_started_again(tmp_path: Path) -> None:
    supervisor = fork_server().Process(target=supervised, args=(SIZE, tmp_path, TIMEOUT))
    supervisor.start()
    try:
        killed = processes_of_all(tmp_path, supervisor)[0]
        os.kill(killed, signal.SIGKILL)
        stopped = processes_of_all(tmp_path, supervisor, without=killed)[2]
        os.kill(stopped, signal.SIGSTOP)
        processes_of_all(tmp_path, supervisor, without=stopped)
        (tmp_path / "stop").touch()
        supervisor.join()
        assert supervisor.exitcode == 0
    finally:
        if supervisor.is_alive() and supervisor.pid is not None:
            end(supervisor.pid)
    members = [line.partition(" ")[2] for line in (tmp_path / "1").read_text().splitlines()]
    assert "1 2" in members
    assert "0 1" in members
