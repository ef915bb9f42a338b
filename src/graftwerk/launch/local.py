"""Workers on this machine: `processes=N` without torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from graftwerk.errors import DONE
from graftwerk.ports import free_port

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
GRACE = 10.0
"""Seconds that the others have to end by themselves after one worker failed."""


def is_worker() -> bool:
    """Whether somebody has already started this process as one of several."""
    return "RANK" in os.environ or "SLURM_STEP_NUM_TASKS" in os.environ


def run_workers(count: int, arguments: Sequence[str]) -> int:
    """Run ``graftwerk *arguments`` as `count` ranks; the first failure's exit code, or 0.

    That of a process that was killed is 128 and the signal. SIGTERM and SIGUSR1/2 are passed on to
    every worker; a terminal's Ctrl-C reaches them anyway.
    """
    command = [sys.executable, "-m", "graftwerk", *arguments]
    shared = environment(count, free_port())
    workers = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return _wait(workers)
    finally:
        for worker in workers:
            worker.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def environment(count: int, port: int) -> dict[str, str]:
    """What all of `count` workers of this machine are started with."""
    shared = os.environ | {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    return shared


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; once one has failed, the others get `GRACE` seconds and are then killed."""
    failure, deadline = DONE, float("inf")
    while None in (codes := [worker.poll() for worker in workers]):
        failed = [code for code in codes if code]
        if failed and failure == DONE:
            failure, deadline = failed[0], time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(0.05)
    failure = failure or next((code for code in codes if code), DONE)
    return failure if failure >= 0 else 128 - failure
