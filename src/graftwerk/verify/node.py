"""On a node of a job, beside the processes that train: what has to happen within milliseconds.

    srun --jobid=JOB --overlap … python -m graftwerk.verify.node KIND RUN_FOLDER [BYTES]

Nothing here imports torch, so that it begins while the run still trains. Says what it did; says
nothing, and ends with 0 as well, where this node trains no more.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

POLL = 0.002
"""Seconds between two looks."""
STEP = ("SLURM_JOB_ID", "SLURM_STEP_ID")


def trainers() -> list[psutil.Process]:
    """The processes of this job's other steps on this node, loaders and launchers too."""
    me, found = [os.environ[name] for name in STEP], list[psutil.Process]()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            env = process.environ()
            job, step = (env.get(name, "") for name in STEP)
            if job == me[0] and step.isdigit() and step != me[1] and "python" in process.name():
                found.append(process)
    return found


def ranks(found: list[psutil.Process]) -> list[psutil.Process]:
    """Those that train: they have a rank, and nobody above them has; or else the first of all."""
    with_rank = {p.pid for p in found if _environ(p).get("RANK") is not None}
    chosen = with_rank or {p.pid for p in found}
    return [p for p in found if p.pid in chosen and _parent(p) not in chosen]


def half_written(folder: Path) -> set[tuple[Path, int]]:
    """What of checkpoints is being written now."""
    found: set[tuple[Path, int]] = set()
    for path in (folder / "checkpoints").glob(".step-*.partial"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path, path.stat().st_mtime_ns))
    return found


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def killed_while_saving(folder: Path, limit: int) -> str | None:
    """SIGKILL as soon as a checkpoint is begun."""
    del limit
    found, left = trainers(), half_written(folder)
    if not _until(lambda: bool(half_written(folder) - left), found):
        return None
    kill(found)
    return "SIGKILL while a checkpoint is written"


def full_disk(folder: Path, limit: int) -> str | None:
    """No file can grow beyond `limit` bytes until a save has failed; then SIGKILL."""
    log, found = folder / "log.jsonl", trainers()
    told = _failures(log)
    for process in ranks(found):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_FSIZE, (limit, limit))
    if not found:
        return None
    failed = _until(lambda: _failures(log) > told, found)
    kill(found)
    return f"no file beyond {limit:,} bytes, {'SIGKILL after a save failed' if failed else 'ended'}"


def _failures(log: Path) -> int:
    """Saves that a log says have failed."""
    return log.read_bytes().count(b'"save_failed"') if log.exists() else 0


def _until(happened: Callable[[], bool], found: list[psutil.Process]) -> bool:
    """Wait for it; False where the processes end before."""
    while not happened():
        if not any(_lives(process) for process in found):
            return False
        time.sleep(POLL)
    return True


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


def _environ(process: psutil.Process) -> dict[str, str]:
    with contextlib.suppress(psutil.Error):
        return process.environ()
    return {}


def _parent(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error):
        return process.ppid()
    return None


KINDS = {"killed_while_saving": killed_while_saving, "full_disk": full_disk}


def main() -> None:
    kind, folder, *limit = sys.argv[1:]
    did = KINDS[kind](Path(folder), int(limit[0]) if limit else 0)
    if did is not None:
        print(did)


if __name__ == "__main__":
    main()
