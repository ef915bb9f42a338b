"""`graftwerk retry`: failed runs once more, where they were trained before."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from graftwerk import runfile
from graftwerk.errors import DONE
from graftwerk.launch import state
from graftwerk.launch.commands import choose
from graftwerk.launch.pool import run_pool
from graftwerk.launch.submit import dependents, resubmit
from graftwerk.launch.sweep import Sweep
from graftwerk.launch.table import queue_of


def retry(folder: Path, where: Sequence[str], jobs: int) -> int:
    """Train again what failed or was cancelled, and what waits for it; attempts count anew."""
    sweep = Sweep.open(folder.absolute())
    with contextlib.chdir(sweep.workdir):
        return _retry(sweep, where, jobs)


def _retry(sweep: Sweep, where: Sequence[str], jobs: int) -> int:
    names = choose(sweep, sweep.statuses(queue_of(sweep)), where)
    if not names:
        print("nothing to retry")
        return DONE
    names = [*names, *dependents(sweep, names)]
    members = {name: sweep.members[name] for name in names}
    runs = {name: runfile.read(member.folder) for name, member in members.items()}
    if any(state.handed_to(member.folder) for member in members.values()):
        print(f"{resubmit(sweep, names, runs)} runs submitted again")
        return DONE
    for member in members.values():
        state.forget_attempts(member.folder)
    return run_pool(sweep, runs, jobs, only=names)
