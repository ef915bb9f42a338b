"""The runs of a grid or pipeline on this machine, each in a process of its own.

The files that tell how a run stands are those of a cluster's jobs (`launch/state.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from types import FrameType

from graftwerk.errors import AGAIN, DONE
from graftwerk.launch import state
from graftwerk.launch.attend import ATTENDED
from graftwerk.launch.state import ACTIVE, FINISHED
from graftwerk.launch.sweep import Member, Sweep
from graftwerk.run import Run

POLL = 0.05
"""Seconds between two looks at the processes."""


def run_pool(sweep: Sweep, runs: Mapping[str, Run], jobs: int, only: Iterable[str] = ()) -> int:
    """Train the runs, `jobs` at a time, each as ``graftwerk run FOLDER``; the first failure's code.

    A run starts when all that it starts from are finished; finished ones are skipped. One that
    fails stops only those that need it. SIGTERM is passed on, and Ctrl-C reaches all anyway.
    """
    statuses, only = sweep.statuses({}), set(only) or sweep.members.keys()
    done = {name for name, one in statuses.items() if one.state == FINISHED}
    busy = {name for name, one in statuses.items() if one.state in ACTIVE}
    waiting = [name for name in sweep.members if name in only and name not in done | busy]
    print(f"{len(sweep.members)} runs, {len(done)} finished; {jobs} at a time", flush=True)
    running: dict[subprocess.Popen[bytes], str] = {}
    failure = DONE
    before = signal.signal(signal.SIGTERM, _stop)
    if sweep.folder is not None:
        state.hand_to(sweep.folder, pid=os.getpid())
    try:
        while running or any(done.issuperset(sweep.members[name].needs) for name in waiting):
            ready = [name for name in waiting if done.issuperset(sweep.members[name].needs)]
            while ready and len(running) < jobs:
                name = ready.pop(0)
                waiting.remove(name)
                running[_start(sweep.members[name], runs[name], jobs)] = name
            time.sleep(POLL)
            for process in [process for process in running if process.poll() is not None]:
                name = running.pop(process)
                code = _ended(sweep.members[name], process)
                said = "finished" if code == DONE else f"ended with code {code}"
                left = len(waiting) + len(running)
                print(f"{sweep.members[name].folder} {said}; {left} to go", flush=True)
                if code == DONE:
                    done.add(name)
                failure = failure or code
    finally:
        for process in running:
            process.terminate()
        for process, name in running.items():
            process.wait()
            _ended(sweep.members[name], process)
        signal.signal(signal.SIGTERM, before)
    for name in waiting:
        missing = ", ".join(other for other in sweep.members[name].needs if other not in done)
        print(f"{sweep.members[name].folder} waits for {missing}", flush=True)
    return failure


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise SystemExit(AGAIN)


def _start(member: Member, run: Run, jobs: int) -> subprocess.Popen[bytes]:
    """`run` in a process of its own; of several at a time, none writes to the terminal."""
    command = [sys.executable, "-m", "graftwerk", "run", str(member.folder)]
    threads = max(1, (os.cpu_count() or 1) // (jobs * run.processes))
    environment = os.environ | {ATTENDED: "1"}
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        command += ["log.console=quiet"]
    process = subprocess.Popen(command, env=environment)
    state.begin(member.folder, process.pid)
    return process


def _ended(member: Member, process: subprocess.Popen[bytes]) -> int:
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    state.end(member.folder, code)
    return code
