"""One start of a training in processes of its own, watched through its log.

A start imports for many seconds. Where many follow each other, they are forked from a process that
has imported and done nothing else, so that a training of seconds is verified in a minute.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing as mp
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil

from graftwerk.errors import GraftwerkError

PRELOADED = ("graftwerk.start", "graftwerk.train", "matplotlib.figure")
"""What most runs import."""
TAIL = 2000
"""Characters of a failed run's output that are shown."""
Line = dict[str, Any]


class FailedError(GraftwerkError):
    """A training of a verification did not do what it should."""

    exit_code = 1


class Started(Protocol):
    """A training that was started, and ends by itself or is ended."""

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        ...

    def lost(self, folder: Path) -> bool:
        """Whether the run in `folder` goes on only where the same command is given again."""
        ...

    def kill(self) -> None:
        """End all of it."""
        ...

    def failed(self, while_: str) -> FailedError:
        """The error that says what it said."""
        ...


class Follower:
    """The lines that a log gains from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.stat().st_size if path.exists() else 0

    def new(self) -> list[Line]:
        """Those since the last call that are whole."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            found = file.read()
        whole = found[: found.rfind(b"\n") + 1]
        self._read += len(whole)
        lines: list[Line] = []
        for text in whole.splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
        return lines


class Attempt:
    """``graftwerk *arguments`` and every process that it starts.

    `fresh` is a new interpreter: its hashes of words, and whatever it draws without a seed, are
    others than those of forked attempts, so that what depends on them differs.
    """

    def __init__(self, arguments: Sequence[str], out: Path, *, fresh: bool) -> None:
        self.out = out
        context = mp.get_context("spawn") if fresh else mp.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self._process = context.Process(target=_graftwerk, args=(list(arguments), out))
        self._process.start()
        assert self._process.pid is not None
        self._pid = self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    def lost(self, folder: Path) -> bool:
        del folder
        return self.code is not None

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code; None where it still runs after so many seconds."""
        self._process.join(seconds)
        return self.code

    def terminate(self) -> None:
        """SIGTERM to the process that was started, as a scheduler sends it."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to every process, in whatever session it is."""
        if self.code is not None:
            return
        processes = self._tree()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.join()
        psutil.wait_procs(processes, timeout=10)

    def limit_files(self, size: int) -> None:
        """No process that trains can write a file beyond `size` bytes any more."""
        for process in self._trainers():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.rlimit(psutil.RLIMIT_FSIZE, (size, size))

    def _trainers(self) -> list[psutil.Process]:
        """The ranks: the processes that have no rank above them. Loaders stay as they are."""
        with contextlib.suppress(psutil.NoSuchProcess):
            main = psutil.Process(self._pid)
            ranks = [child for child in main.children(recursive=True) if _is_rank(child)]
            pids = {rank.pid for rank in ranks}
            return [rank for rank in ranks if rank.ppid() not in pids] or [main]
        return []

    def _tree(self) -> list[psutil.Process]:
        try:
            main = psutil.Process(self._pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def failed(self, while_: str) -> FailedError:
        said = self.out.read_text(errors="replace")[-TAIL:] if self.out.exists() else ""
        return FailedError(
            f"{while_}: the training ended with code {self.code} and said (all of it is in "
            f"{self.out}):\n{said}"
        )


def _graftwerk(arguments: list[str], out: Path) -> None:
    """The command as if it were typed, in a session of its own."""
    os.setsid()
    mp.set_start_method(None, force=True)  # for its loaders, the fork server's by now
    with out.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["graftwerk", *arguments]
    runpy.run_module("graftwerk", run_name="__main__")


def _is_rank(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "RANK" in process.environ()
    return False
