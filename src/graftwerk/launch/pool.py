"""The runs of a grid or pipeline on this machine, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from graftwerk import runfolder
from graftwerk.errors import DONE
from graftwerk.pipeline import Pipeline
from graftwerk.run import Run

POLL = 0.05
"""Seconds between two looks at the processes."""


def run_pool(pipeline: Pipeline, jobs: int) -> int:
    """Train the runs, `jobs` at a time, each as ``graftwerk run FOLDER``; the first failure's code.

    A run starts when all that it starts from are finished; finished ones are skipped. One that
    fails stops only those that need it. Ctrl-C and signals to the process group reach them all.
    """
    runs, needs = pipeline.resolved(), pipeline.needs
    finished = {name for name, run in runs.items() if runfolder.finished(run) is not None}
    waiting = [name for name in runs if name not in finished]
    print(f"{len(runs)} runs, {len(finished)} finished; {jobs} at a time", flush=True)
    running: dict[subprocess.Popen[bytes], str] = {}
    failure = DONE
    try:
        while running or any(finished.issuperset(needs[name]) for name in waiting):
            ready = [name for name in waiting if finished.issuperset(needs[name])]
            while ready and len(running) < jobs:
                name = ready.pop(0)
                waiting.remove(name)
                running[_start(runs[name], jobs)] = name
            time.sleep(POLL)
            for process in [process for process in running if process.poll() is not None]:
                name, code = running.pop(process), process.returncode
                state = "finished" if code == DONE else f"ended with code {code}"
                left = len(waiting) + len(running)
                print(f"{runs[name].folder} {state}; {left} to go", flush=True)
                if code == DONE:
                    finished.add(name)
                failure = failure or code
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    for name in waiting:
        missing = ", ".join(other for other in needs[name] if other not in finished)
        print(f"{runs[name].folder} waits for {missing}", flush=True)
    return failure


def _start(run: Run, jobs: int) -> subprocess.Popen[bytes]:
    """`run` in a process of its own; of several at a time, none writes to the terminal."""
    runfolder.prepare(run)
    command = [sys.executable, "-m", "graftwerk", "run", str(run.folder)]
    command += [f"log.folder={run.log.folder}"]
    threads = max(1, (os.cpu_count() or 1) // (jobs * run.processes))
    environment = {"OMP_NUM_THREADS": str(threads)} if jobs > 1 else {}
    if jobs > 1:
        command += ["log.console=quiet"]
    return subprocess.Popen(command, env=os.environ | environment)
