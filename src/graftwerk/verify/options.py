"""The words of `graftwerk verify-resume`; help must not import torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `verify-resume`; `command` makes its parser."""
    sub = command(
        verify_resume,
        "train twice, once killed again and again, and compare the last bit of both ends",
        usage="RECIPE [--on slurm] [--kills N] [--seed N] [--run NAME] [--folder DIR] [--json] "
        "[key=value …]",
    )
    sub.add_argument("recipe")
    sub.add_argument("--on", choices=("local", "slurm"), default="local", help="who trains")
    sub.add_argument("--kills", type=int, default=5)
    sub.add_argument("--seed", type=int, help="of moments and kinds of kills; drawn if not given")
    sub.add_argument("--run", metavar="NAME", help="kill only this run of a pipeline, as module_*")
    sub.add_argument(
        "--folder", type=Path, help="keep both trainings there; else they are removed when equal"
    )
    sub.add_argument("--json", action="store_true", help="one JSON object instead of tables")


def verify_resume(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del arguments
    from graftwerk.verify.resume import verify_resume

    return verify_resume(
        options.recipe,
        words,
        on=options.on,
        kills=options.kills,
        seed=options.seed,
        only=options.run,
        folder=options.folder,
        as_json=options.json,
    )
