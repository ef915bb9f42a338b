"""The commands for runs that were started, and their words; help must not import torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from graftwerk.errors import DONE


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `status`, `results`, `retry`, `cancel` and `logs`; `command` makes one's parser."""
    sub = command(
        status,
        "show how runs stand: progress, scores, attempts, where, time left",
        usage="[FOLDER] [--json] [--watch [SECONDS]]",
        takes_keys=False,
    )
    _add_folder(sub, nargs="?")
    sub.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    sub.add_argument("--watch", type=float, nargs="?", const=10.0, help="again, until all ended")
    sub = command(
        results,
        "tabulate finished runs: the keys in which they differ, and their scores",
        usage="[FOLDER] [--out FILE.csv|FILE.parquet]",
        takes_keys=False,
    )
    _add_folder(sub, nargs="?")
    sub.add_argument("--out", type=Path, help="write the table there")
    sub = command(
        retry,
        "start runs again that failed or were cancelled, and those that wait for them",
        usage="SWEEP [--failed | --where key=value …] [--jobs N]",
        takes_keys=False,
    )
    _add_folder(sub)
    sub.add_argument("--failed", action="store_true", help="all that failed (the default)")
    sub.add_argument("--where", nargs="+", default=[], help="those with these values instead")
    sub.add_argument("--jobs", type=int, default=1, help="on this machine: runs at a time")
    sub = command(cancel, "end runs that are queued or running", usage="FOLDER", takes_keys=False)
    _add_folder(sub)
    sub = command(logs, "print what a run said", usage="FOLDER RUN", takes_keys=False)
    _add_folder(sub)
    sub.add_argument("name", help="as `status` calls it")


def _add_folder(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        nargs=nargs,
        default=Path("runs"),
        help="of a sweep, of a run, or of runs; default: runs",
    )


def status(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del words, arguments
    from graftwerk.launch.table import status

    status(options.folder, as_json=options.json, watch=options.watch)
    return DONE


def results(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del words, arguments
    from graftwerk.launch.commands import results

    print("\n".join(results(options.folder, options.out)))
    return DONE


def retry(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del words, arguments
    from graftwerk.launch.retry import retry

    return retry(options.folder, options.where, options.jobs)


def cancel(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del words, arguments
    from graftwerk.launch.commands import cancel

    print(cancel(options.folder))
    return DONE


def logs(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del words, arguments
    from graftwerk.launch.commands import logs

    return logs(options.folder, options.name)
