"""The words of `graftwerk doctor`; help must not import torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `doctor`; `command` makes its parser."""
    sub = command(
        doctor,
        "look at this machine as a run would, and say what is wrong and what to do",
        usage="[--folder DIR] [--processes N] [--json]",
        takes_keys=False,
    )
    sub.add_argument("--folder", type=Path, default=Path("runs"), help="of runs: its disk is tried")
    sub.add_argument("--processes", type=int, default=2, help="local ranks that talk to each other")
    sub.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def doctor(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del words, arguments
    from graftwerk.doctor.report import doctor

    return doctor(options.folder, options.processes, as_json=options.json)
