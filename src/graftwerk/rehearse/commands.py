"""`graftwerk rehearse …` on the command line."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from graftwerk.errors import DONE
from graftwerk.rehearse import accidents
from graftwerk.rehearse.cluster import Cluster
from graftwerk.rehearse.options import FOLDER
from graftwerk.rehearse.processes import RehearsalError


def rehearse(options: argparse.Namespace) -> int:
    folder = options.folder or Path(os.environ.get(FOLDER, "rehearsal"))
    if options.action == "start":
        return _start(folder, options)
    cluster = Cluster.open(folder)
    if options.action == "stop":
        cluster.stop()
        return DONE
    if options.action == "shell":
        return _shell(cluster, options)
    print(ACCIDENTS[options.action](cluster, options))
    return DONE


def _start(folder: Path, options: argparse.Namespace) -> int:
    cluster = Cluster.start(
        folder,
        nodes=options.nodes,
        cpus=options.cpus,
        gpus=options.gpus,
        machines=options.machines,
        grace=options.grace,
        disk_mb=options.disk_mb,
        settings=dict(_setting(text) for text in options.settings),
    )
    where = f"--folder {options.folder} " if options.folder else ""
    print(f"{len(cluster.nodes)} nodes in {cluster.folder}")
    print(f"  graftwerk rehearse shell {where}         a shell in which sbatch and squeue use it")
    if not cluster.machines:
        print(f"  export SLURM_CONF={cluster.conf}   the same, for the shell you are in")
    print(f"  graftwerk rehearse stop {where}          end it")
    return DONE


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise RehearsalError(f"--set {text}: write KEY=VALUE, a line of slurm.conf")
    return key, value


def _shell(cluster: Cluster, options: argparse.Namespace) -> int:
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    command = words or [os.environ.get("SHELL", shutil.which("bash") or "sh")]
    env = {**os.environ, **cluster.env, FOLDER: str(cluster.folder)}
    return subprocess.run(cluster.command(*command, on=options.on), env=env, check=False).returncode


def _time_limit(cluster: Cluster, options: argparse.Namespace) -> str:
    return f"sent {accidents.time_limit(cluster, options.job, options.signal)}"


def _preempt(cluster: Cluster, options: argparse.Namespace) -> str:
    intruder = accidents.preempt(cluster, options.job, options.seconds)
    return f"job {intruder} takes the nodes of {options.job} for {options.seconds:g} s"


def _lose(cluster: Cluster, options: argparse.Namespace) -> str:
    accidents.lose(cluster, options.node)
    return f"{options.node} is off; `heal {options.node}` brings it back"


def _cut(cluster: Cluster, options: argparse.Namespace) -> str:
    accidents.cut(cluster, options.node)
    return f"the cable of {options.node} is out; `heal {options.node}` puts it back"


def _heal(cluster: Cluster, options: argparse.Namespace) -> str:
    accidents.heal(cluster, options.node)
    return f"{options.node} takes jobs"


def _fill(cluster: Cluster, options: argparse.Namespace) -> str:
    del options
    return f"{accidents.fill(cluster).parent} is full; `free` makes room"


def _free(cluster: Cluster, options: argparse.Namespace) -> str:
    del options
    accidents.free(cluster)
    return f"{cluster.disk} has room"


ACCIDENTS: dict[str, Callable[[Cluster, argparse.Namespace], str]] = {
    "time-limit": _time_limit,
    "preempt": _preempt,
    "lose": _lose,
    "cut": _cut,
    "heal": _heal,
    "fill": _fill,
    "free": _free,
}
