"""A private Slurm in a folder: started in a second, gone without a trace."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from graftwerk.ports import free_ports
from graftwerk.rehearse.conf import HEAD, Node, gres_conf, slurm_conf
from graftwerk.rehearse.machines import Machines
from graftwerk.rehearse.processes import (
    SEARCH,
    Daemons,
    RehearsalError,
    kill,
    missing,
    of_jobs,
    until,
)

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
LONGEST_SOCKET = 107
"""Bytes in the path of a socket."""
LAST_STEP = f"{67_000_000}.{2**32 - 1}"
"""The longest number of a job and its step: slurmd's sockets end in it."""
CONTROLLER_PORT, NODE_PORT = 6817, 6818


@dataclass(frozen=True)
class Plan:
    """What a rehearsal consists of."""

    nodes: int = 4
    cpus: int = 4
    """Of each node; nobody checks that the host has them."""
    gpus: int = 2
    """Of each node, faked."""
    machines: bool = False
    """Each node has an address, a hostname and a cable of its own (as root)."""
    disk_mb: int = 0
    """The size of a small disk under ``FOLDER/disk`` (as root), to be filled up; 0: none."""
    grace: int = 30
    """Seconds from SIGTERM to SIGKILL for a job that is preempted, cancelled or out of time."""
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    """Further lines of slurm.conf."""


class Cluster:
    """A rehearsal in `folder`. As a context manager it stops on exit.

    >>> with Cluster.start(folder, nodes=2) as cluster:
    ...     cluster.run("srun", "-N2", "hostname")
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder.resolve(), plan
        self.nodes = [f"n{number}" for number in range(1, plan.nodes + 1)]
        self.conf = self.folder / "slurm.conf"
        self.disk = self.folder / "disk"
        self.daemons = Daemons(self.folder)
        self.machines = Machines(self.folder, self.nodes) if plan.machines else None

    @classmethod
    def start(cls, folder: Path, **plan: Any) -> Cluster:
        """A new cluster with all nodes idle; `plan` names fields of `Plan`.

        Raises `RehearsalError` where Slurm, iproute2 or root is missing, or the folder is in use.
        """
        cluster = cls(folder, Plan(**plan))
        cluster._check()
        try:
            cluster._start()
        except BaseException:
            cluster.stop()
            raise
        return cluster

    @classmethod
    def open(cls, folder: Path) -> Cluster:
        """The rehearsal that runs in `folder`."""
        facts = folder / "rehearsal.json"
        if not facts.exists():
            raise RehearsalError(f"{folder}: no rehearsal here; graftwerk rehearse start makes one")
        return cls(folder, Plan(**json.loads(facts.read_text())))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def env(self) -> dict[str, str]:
        """What Slurm's commands need beside the caller's environment to talk to this cluster."""
        return {"SLURM_CONF": str(self.conf), "PATH": SEARCH}

    def command(self, *command: str, on: str = HEAD) -> list[str]:
        """The command line that runs `command` on a machine; as it is where nodes are virtual."""
        if on not in [HEAD, *self.nodes]:
            raise RehearsalError(
                f"{on}: no such machine; there are {HEAD}, {', '.join(self.nodes)}"
            )
        return self.machines.inside(on, command) if self.machines else list(command)

    def run(
        self, *command: str, on: str = HEAD, env: Mapping[str, str] | None = None, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` with the cluster's environment; its output is text, a failure raises.

        `how` goes to `subprocess.run`.
        """
        how = {"capture_output": True, "text": True, "check": True} | how
        return subprocess.run(
            self.command(*command, on=on), env={**os.environ, **self.env, **(env or {})}, **how
        )

    def stop(self) -> None:
        """Kill the jobs and the daemons and take the network down; logs stay in the folder."""
        kill(self.daemons.alive().values())
        kill(of_jobs(self.folder))
        (self.folder / "munge.socket").unlink(missing_ok=True)
        if self.machines:
            self.machines.down()
        if self.disk.is_mount():
            subprocess.run(["umount", "--lazy", self.disk], check=False)
        (self.folder / "rehearsal.json").unlink(missing_ok=True)

    def start_node(self, name: str) -> None:
        command = ["slurmd", "-D", "-N", name, "-f", str(self.conf)]
        self._daemon(f"slurmd-{name}", command, on=name)

    # ------------------------------------------------------------ the start, in its order

    def _check(self) -> None:
        if lacking := missing(PROGRAMS):
            raise RehearsalError(
                f"{', '.join(lacking)}: not installed; Debian and Ubuntu have them in the packages "
                "slurm-wlm and munge"
            )
        if self.plan.machines:
            Machines.check()
        if self.plan.disk_mb and os.geteuid() != 0:
            raise RehearsalError("a small disk has to be mounted, which needs root")
        if self.daemons.alive():
            raise RehearsalError(f"{self.folder}: a rehearsal runs here; graftwerk rehearse stop")
        step = self.folder / "spool" / self.nodes[-1] / f"{self.nodes[-1]}_{LAST_STEP}"
        if (excess := len(os.fsencode(step)) - LONGEST_SOCKET) > 0:
            raise RehearsalError(
                f"{self.folder}: this path is too long for Slurm's sockets in it, by {excess} "
                "characters; choose a shorter --folder"
            )

    def _start(self) -> None:
        self._write_files()
        if self.plan.disk_mb:
            self.disk.mkdir(exist_ok=True)
            size = f"size={self.plan.disk_mb}m"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "disk", self.disk], check=True)
        if self.machines:
            self.machines.up()
        self._start_munge()
        self._daemon("slurmctld", ["slurmctld", "-D", "-c", "-f", str(self.conf)])
        # A slurmd that registers before the controller listens tries again only seconds later.
        self._wait("slurmctld", "scontrol", "ping", shows=lambda said: "is UP" in said)
        for name in self.nodes:
            self.start_node(name)
        idle = ["sinfo", "--noheader", "--Node", "--partition=main", "--states=idle", "-o%N"]
        self._wait("slurmd-n1", *idle, shows=lambda said: len(said.split()) == len(self.nodes))

    def _write_files(self) -> None:
        for name in ("state", "spool", "log"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(parents=True)
        for name in self.nodes:
            (self.folder / "spool" / name).mkdir()
        devices = [self.folder / "spool" / f"gpu{number}" for number in range(self.plan.gpus)]
        for device in devices:
            device.symlink_to("/dev/null")
        head, nodes = self._layout()
        text = slurm_conf(
            self.folder,
            head,
            nodes,
            cpus=self.plan.cpus,
            gpus=self.plan.gpus,
            grace=self.plan.grace,
            first_job=random.SystemRandom().randrange(1_000, 60_000_000),
            settings=self.plan.settings,
        )
        self.conf.write_text(text)
        (self.folder / "gres.conf").write_text(gres_conf(nodes, devices))
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (self.folder / "rehearsal.json").write_text(json.dumps(asdict(self.plan), indent=2))

    def _layout(self) -> tuple[Node, list[Node]]:
        if self.machines:
            place = self.machines.address
            nodes = [Node(name, name, place(name), NODE_PORT) for name in self.nodes]
            return Node(HEAD, HEAD, place(HEAD), CONTROLLER_PORT), nodes
        host, local = socket.gethostname().partition(".")[0], "127.0.0.1"
        port, *ports = free_ports(1 + len(self.nodes))
        nodes = [Node(name, host, local, p) for name, p in zip(self.nodes, ports, strict=True)]
        return Node(HEAD, host, local, port), nodes

    def _start_munge(self) -> None:
        files = {"key-file": "key", "socket": "socket", "seed-file": "seed"}
        files |= {"pid-file": "pid", "log-file": "log"}
        options = [f"--{name}={self.folder}/munge.{end}" for name, end in files.items()]
        # --force: the parents of the folder may be writable by others, as /tmp is.
        self._daemon("munged", ["munged", "--foreground", "--force", *options])
        socket_file = self.folder / "munge.socket"
        until(socket_file.exists, lambda: f"munged doesn't answer:\n{self.daemons.said('munged')}")

    def _daemon(self, name: str, command: Sequence[str], *, on: str = HEAD) -> None:
        env = {**os.environ, **self.env}
        self.daemons.start(name, self.command(*command, on=on), env)

    def _wait(self, daemon: str, *command: str, shows: Any) -> None:
        def answered() -> bool:
            return shows(self.run(*command, check=False).stdout)

        until(answered, lambda: f"{daemon} doesn't answer:\n{self.daemons.said(daemon)}")
