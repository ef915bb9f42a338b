"""The daemons of a private cluster, and the processes of the jobs on its nodes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from graftwerk.errors import GraftwerkError

SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""Daemons and network tools are often outside an ordinary user's PATH."""
PATIENCE = 60.0
"""Seconds that a daemon has to answer; a loaded machine is slow."""


class RehearsalError(GraftwerkError):
    """The rehearsal can't be started, or what was asked of it can't happen."""


def missing(programs: Iterable[str]) -> list[str]:
    return [program for program in programs if shutil.which(program, path=SEARCH) is None]


class Daemons:
    """Long-lived processes that are remembered in a file, so that a later command can end them."""

    def __init__(self, folder: Path) -> None:
        self._file, self._log = folder / "daemons.json", folder / "log"

    def start(self, name: str, command: Sequence[str], env: dict[str, str]) -> None:
        with (self._log / f"{name}.out").open("wb") as log:
            process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        born = psutil.Process(process.pid).create_time()
        self._file.write_text(json.dumps(self._known() | {name: [process.pid, born]}))

    def alive(self) -> dict[str, psutil.Process]:
        found: dict[str, psutil.Process] = {}
        for name, (pid, born) in self._known().items():
            try:
                process = psutil.Process(pid)
                if process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE:
                    found[name] = process
            except psutil.NoSuchProcess:
                continue
        return found

    def said(self, name: str) -> str:
        """The end of what daemon `name` said, for a message about its failure."""
        texts = [self._log / f"{name}.out", self._log / f"{name}.log"]
        lines = [line for text in texts if text.exists() for line in text.read_text().splitlines()]
        return "\n".join(lines[-5:])

    def _known(self) -> dict[str, tuple[int, float]]:
        return json.loads(self._file.read_text()) if self._file.exists() else {}


def of_jobs(cluster: Path, node: str | None = None) -> Iterator[psutil.Process]:
    """The processes of the jobs of the cluster in this folder, on one node or on all.

    Slurm's supervisor of a step keeps the log of its node open, and is known by it; a task has the
    cluster and the node in its environment.
    """
    log = str(cluster / "log" / f"slurmd-{node or ''}")
    ours = {"SLURM_CONF": str(cluster / "slurm.conf")}
    ours |= {"SLURMD_NODENAME": node} if node else {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name() == "slurmstepd":
                opened = (file.path.removesuffix(".log") for file in process.open_files())
                if any(path == log if node else path.startswith(log) for path in opened):
                    yield process
            elif "SLURMD_NODENAME" in (env := process.environ()) and ours.items() <= env.items():
                yield process


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL, and wait for the end."""
    left = list(processes)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def until(happened: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Wait until `happened`; raises `RehearsalError` with what `otherwise` says."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise RehearsalError(otherwise())
        time.sleep(0.05)
