"""A run that the command trains by itself leaves the same files as one of a pool or a job."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from graftwerk.errors import CRASH, DONE, INTERRUPTED, GraftwerkError
from graftwerk.launch import state

ATTENDED = "GRAFTWERK_ATTENDED"
"""The environment variable that says that whoever started this process writes these files."""


def begin(folder: Path) -> None:
    """The first rank, or the one process of a run, is about to train in `folder`."""
    if ATTENDED not in os.environ:
        state.begin(folder, os.getppid() if "RANK" in os.environ else os.getpid())


def attended(folder: Path, train: Callable[[], int | None]) -> int:
    """Train; how it ended is written down by the process that it began with. The exit code."""
    code = CRASH
    try:
        code = train() or DONE
    except GraftwerkError as error:
        code = error.exit_code
        raise
    except KeyboardInterrupt:
        code = INTERRUPTED
        raise
    finally:
        if state.process_here(folder) == os.getpid() and state.is_open(folder):
            state.end(folder, code)
    return code
