"""What happens to jobs on real clusters, to order."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from graftwerk.rehearse.cluster import Cluster
from graftwerk.rehearse.processes import RehearsalError, kill, of_jobs, until

SIGNAL = re.compile(r"^#SBATCH\s+--signal[=\s]+([RB]+:)?(\w+)", re.MULTILINE)
FILLER = "filler"


def time_limit(cluster: Cluster, job: str, signal: str | None = None) -> str:
    """Send what Slurm sends a while before the time limit; what was sent, in words.

    The job script's ``#SBATCH --signal=[B:]SIGNAL@SECONDS`` says what that is, and whether it goes
    to the batch shell (B) or to the tasks. `signal` is written like that, and wins.
    """
    script = f"#SBATCH --signal={signal}" if signal else _script(cluster, job)
    asked = SIGNAL.search(script)
    if asked is None:
        raise RehearsalError(f"job {job}: its script asks for no --signal; name one")
    flags, name = asked[1] or "", asked[2]
    to_shell = ["--batch"] if "B" in flags else []
    _slurm(cluster, "scancel", f"--signal={name}", *to_shell, job)
    return f"{name} to the {'batch shell' if to_shell else 'tasks'} of job {job}"


def preempt(cluster: Cluster, job: str, seconds: float = 5.0) -> str:
    """Let a job of higher priority take the job's nodes for `seconds`; the intruder's number.

    Slurm sends the tasks SIGTERM; a job that still runs after its time of grace is killed and
    requeued (Slurm looks every 30 s), one that ends by itself is not.
    """
    nodes = _slurm(cluster, "squeue", "--noheader", "--jobs", job, "--format=%N").strip()
    if not nodes:
        raise RehearsalError(f"job {job}: runs on no node now")
    names = _slurm(cluster, "scontrol", "show", "hostnames", nodes).split()
    words = ["--partition=high", f"--nodelist={nodes}", f"--nodes={len(names)}", "--exclusive"]
    words += ["--job-name=intruder", "--output=/dev/null", "--time=60", "--parsable"]
    return _slurm(cluster, "sbatch", *words, f"--wrap=sleep {seconds}").strip()


def lose(cluster: Cluster, node: str) -> None:
    """The power of a node fails and the controller knows at once: its jobs are requeued."""
    _known(cluster, node)
    _slurm(cluster, "scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
    if cluster.machines:
        cluster.machines.cable(node, plugged=False)
    daemon = cluster.daemons.alive().get(f"slurmd-{node}")
    kill([daemon] if daemon else [])
    kill(of_jobs(cluster.folder, node))


def cut(cluster: Cluster, node: str) -> None:
    """Pull the cable of a machine; nobody is told. Slurm notices after its SlurmdTimeout."""
    _known(cluster, node)
    if not cluster.machines:
        raise RehearsalError("these nodes have no cables: start the rehearsal with --machines")
    cluster.machines.cable(node, plugged=False)


def heal(cluster: Cluster, node: str) -> None:
    """Put the cable back, switch the node on, and wait until it takes jobs."""
    _known(cluster, node)
    if cluster.machines:
        cluster.machines.cable(node, plugged=True)
    if f"slurmd-{node}" not in cluster.daemons.alive():
        cluster.start_node(node)
    until(lambda: _usable(cluster, node), lambda: f"{node} does not come back")


def fill(cluster: Cluster) -> Path:
    """Fill the small disk to its last byte."""
    if not cluster.disk.is_mount():
        raise RehearsalError("this rehearsal has no small disk: start it with --disk-mb 64")
    file = cluster.disk / FILLER
    with contextlib.suppress(OSError), file.open("ab", buffering=0) as filler:
        for size in (2**20, 2**10, 1):
            with contextlib.suppress(OSError):
                while filler.write(bytes(size)) == size:
                    pass
    return file


def free(cluster: Cluster) -> None:
    """Make room on the small disk again."""
    (cluster.disk / FILLER).unlink(missing_ok=True)


def _script(cluster: Cluster, job: str) -> str:
    _slurm(cluster, "scontrol", "show", "job", job)  # `write` succeeds for jobs that don't exist
    return _slurm(cluster, "scontrol", "write", "batch_script", job, "-")


def _usable(cluster: Cluster, node: str) -> bool:
    states = ["--states=idle,mixed,allocated", "--responding", f"--nodes={node}", "--format=%N"]
    return node in _slurm(cluster, "sinfo", "--noheader", *states).split()


def _known(cluster: Cluster, node: str) -> None:
    if node not in cluster.nodes:
        raise RehearsalError(f"{node}: no such node; there are {', '.join(cluster.nodes)}")


def _slurm(cluster: Cluster, *command: str) -> str:
    """What Slurm says; what it refuses, in its own words."""
    done = cluster.run(*command, check=False)
    if done.returncode:
        raise RehearsalError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
