"""Slurm's own commands. What a site refuses is shown as the site said it."""

from __future__ import annotations

import getpass
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from graftwerk.errors import GraftwerkError
from graftwerk.launch.state import Queued


class SlurmError(GraftwerkError):
    """Slurm refused, or is not there."""


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]}: not found; --on slurm needs Slurm's commands on this machine"
        ) from None
    if done.returncode != 0:
        raise SlurmError(f"{command[0]} refused: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def submit(script: Path) -> str:
    """The id of the new job."""
    return _ask("sbatch", "--parsable", str(script)).strip().partition(";")[0]


def longest_array() -> int:
    """Elements that the site allows in one array."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"))
    return int(found[1]) if found else 1001


def queue() -> Mapping[str, Queued]:
    """All jobs of this user that have not ended, by id: ``71_3`` for elements of arrays."""
    form = "%i|%t|%N|%r"
    rows = _ask(
        "squeue", "--noheader", "--array", f"--user={getpass.getuser()}", f"--format={form}"
    )
    jobs: dict[str, Queued] = {}
    for row in rows.splitlines():
        job, state, nodes, reason = row.split("|", 3)
        running = state not in ("PD", "RQ", "RH", "RF", "SE")
        jobs[job] = Queued(running, nodes if running else reason)
    return jobs


def restarts() -> dict[str, int]:
    """How often each of this user's jobs has begun again, by id as in `queue`."""
    form = "--Format=JobArrayID:40,RestartCnt:12"
    rows = _ask("squeue", "--noheader", "--array", f"--user={getpass.getuser()}", form)
    return {job: int(count) for job, count in map(str.split, rows.splitlines())}


def job_called(name: str) -> str | None:
    """The id of this user's job of that name, if it has not ended."""
    user = f"--user={getpass.getuser()}"
    found = _ask("squeue", "--noheader", user, f"--name={name}", "--format=%F").split()
    return found[0] if found else None


def cancel(jobs: Iterable[str]) -> None:
    """SIGTERM, and SIGKILL after the site's grace; pending ones never start."""
    wanted = list(jobs)
    if wanted:
        _ask("scancel", *wanted)


def signal(job: str, name: str) -> None:
    """Send a signal to what `srun` has started in a job: KILL to a whole job would cancel it."""
    found = _ask("squeue", "--steps", "--noheader", f"--jobs={job}", "--format=%i").split()
    steps = [step for step in found if step.rpartition(".")[2].isdigit()]
    if not steps:
        raise SlurmError(f"job {job} runs nothing that could be sent {name}")
    _ask("scancel", f"--signal={name}", *steps)


def beside(job: str, command: Sequence[str]) -> list[str]:
    """Run a command once on each node of a job, beside what runs there; the lines that it said.

    The job may end with it: what was said by then counts.
    """
    number, nodes = _ask("squeue", "--noheader", f"--jobs={job}", "--format=%A %D").split()
    each = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    srun = ["srun", f"--jobid={number}", "--overlap", *each, *command]
    done = subprocess.run(srun, capture_output=True, text=True, check=False)
    if done.returncode and not done.stdout:
        raise SlurmError(f"srun refused: {done.stderr.strip()}")
    return done.stdout.splitlines()


def kill(job: str) -> None:
    """End a job and its script at once."""
    _ask("scancel", "--signal=KILL", "--full", job)


def requeue(job: str) -> None:
    """End a job as a site does that wants its nodes: it is queued again."""
    _ask("scontrol", "requeue", job)


def start_now(job: str) -> None:
    """Let a queued job not wait for its time, as that of one that was requeued a moment ago."""
    _ask("scontrol", "update", f"JobId={job}", "StartTime=now")


def hosts(nodes: str) -> list[str]:
    """The names that ``n[1-3]`` stands for."""
    return _ask("scontrol", "show", "hostnames", nodes).split()
