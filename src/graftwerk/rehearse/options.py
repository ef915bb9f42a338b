"""The words of `graftwerk rehearse …`."""

from __future__ import annotations

import argparse
from pathlib import Path

FOLDER = "GRAFTWERK_REHEARSAL"
"""The environment variable that names the rehearsal which later commands mean."""


def add_actions(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help: str, *, of: str | None = None) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.add_argument("--folder", type=Path, help=f"default: ${FOLDER}, else rehearsal")
        if of is not None:
            sub.add_argument(of)
        return sub

    sub = action("start", "start a private Slurm in a folder")
    sub.add_argument("--nodes", type=int, default=4)
    sub.add_argument("--cpus", type=int, default=4, help="of a node; the host need not have them")
    sub.add_argument("--gpus", type=int, default=2, help="of a node, faked")
    sub.add_argument(
        "--machines", action="store_true", help="nodes with an address and a cable each (root)"
    )
    sub.add_argument("--grace", type=int, default=30, help="seconds from SIGTERM to SIGKILL")
    sub.add_argument("--disk-mb", type=int, default=0, help="also a small disk to fill up (root)")
    sub.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE",
        help="a line of slurm.conf",
    )  # fmt: skip
    action("stop", "end the jobs and the cluster; logs stay")
    sub = action("shell", "a shell, or one COMMAND, whose sbatch and squeue use the cluster")
    sub.add_argument("--on", default="head", metavar="MACHINE", help="where nodes are machines")
    sub.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    sub = action("time-limit", "send a job what it gets a while before its time limit", of="job")
    sub.add_argument("--signal", metavar="[B:]NAME", help="default: what its script asks for")
    sub = action("preempt", "let a job of higher priority take a job's nodes", of="job")
    sub.add_argument("--seconds", type=float, default=5.0)
    action("lose", "a node's power fails", of="node")
    action("cut", "pull a machine's cable", of="node")
    action("heal", "bring a lost node or a cut link back", of="node")
    action("fill", "fill the small disk")
    action("free", "make room on the small disk")
