"""One start of a training in processes of its own, watched through its log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from graftwerk.errors import GraftwerkError

TAIL = 2000
"""Characters of a failed run's output that are shown."""
Line = dict[str, Any]


class FailedError(GraftwerkError):
    """A training of a verification did not do what it should."""

    exit_code = 1


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
    """A command and every process that it starts."""

    def __init__(self, command: Sequence[str], out: Path) -> None:
        self.out = out
        with out.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code; None where it still runs after so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def terminate(self) -> None:
        """SIGTERM to the process that was started, as a scheduler sends it."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to every process, in whatever session it is."""
        processes = self._tree()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(processes, timeout=10)

    def limit_files(self, size: int) -> None:
        """No process that trains can write a file beyond `size` bytes any more."""
        for process in self._trainers():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.rlimit(psutil.RLIMIT_FSIZE, (size, size))

    def _trainers(self) -> list[psutil.Process]:
        """The ranks: the processes that have no rank above them. Loaders stay as they are."""
        with contextlib.suppress(psutil.NoSuchProcess):
            main = psutil.Process(self._process.pid)
            ranks = [child for child in main.children(recursive=True) if _is_rank(child)]
            pids = {rank.pid for rank in ranks}
            return [rank for rank in ranks if rank.ppid() not in pids] or [main]
        return []

    def _tree(self) -> list[psutil.Process]:
        try:
            main = psutil.Process(self._process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def failed(self, while_: str) -> FailedError:
        said = self.out.read_text(errors="replace")[-TAIL:] if self.out.exists() else ""
        return FailedError(
            f"{while_}: the training ended with code {self.code} and said (all of it is in "
            f"{self.out}):\n{said}"
        )


def _is_rank(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "RANK" in process.environ()
    return False
