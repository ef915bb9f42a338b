"""`stdout.txt` and `stderr.txt`: what the process prints goes there and to the terminal.

The copy holds plain text: control codes are taken out, and the progress bar, which draws on the
terminal itself, never comes by. Only Python's own `sys.stdout` and `sys.stderr` are captured.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.file_proxy import FileProxy
from typing_extensions import override

from graftwerk.errors import GraftwerkError
from graftwerk.log.sink import Sink

PAUSE = 30.0
"""Seconds before a file that could not be written is tried again."""
CONTROL_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")


class Tee:
    """A text stream that also writes to a file; otherwise it is the stream it stands for."""

    def __init__(self, terminal: TextIO, path: Path) -> None:
        self.terminal = terminal
        self._front: Any = terminal
        self._path = path
        self._file: TextIO | None = self._opened()
        self._open_again = math.inf
        self._process = os.getpid()

    def _opened(self) -> TextIO:
        return self._path.open("a", buffering=1, encoding="utf-8", errors="replace")

    def write(self, text: str) -> int:
        try:
            if self._file is None and time.monotonic() > self._open_again:
                self._file = self._opened()
            if self._file is not None:
                self._file.write(CONTROL_CODES.sub("", text))
        except (OSError, ValueError):  # a full disk; training and the terminal go on
            self._forget()
            self._open_again = time.monotonic() + PAUSE
        with contextlib.suppress(OSError):  # the terminal went away
            # A forked loader worker must not draw the bar of its parent.
            (self._front if os.getpid() == self._process else self.terminal).write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._front.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)

    def behind(self, console: Console | None) -> None:
        """Print above the live display of `console` from now on; None: directly again."""
        self.flush()
        self._front = FileProxy(console, self.terminal) if console is not None else self.terminal

    def note(self, text: str) -> None:
        """Into the file only."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.write(text)

    def close(self) -> None:
        self.behind(None)
        self._forget()
        self._open_again = math.inf

    def _forget(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


class Capture(Sink):
    """Stands in for `sys.stdout` and `sys.stderr` until it is closed."""

    def __init__(self, folder: Path) -> None:
        self.out = Tee(sys.stdout, folder / "stdout.txt")
        self.err = Tee(sys.stderr, folder / "stderr.txt")
        sys.stdout, sys.stderr = cast(TextIO, self.out), cast(TextIO, self.err)

    @override
    def close(self, status: str) -> None:
        """Print directly again. An error on its way out leaves its traceback in `stderr.txt`."""
        error = sys.exception()
        if isinstance(error, GraftwerkError):
            self.err.note(f"{error}\n")
        elif error is not None:
            self.err.note("".join(traceback.format_exception(error)))
        if sys.stdout is self.out:
            sys.stdout = self.out.terminal
        if sys.stderr is self.err:
            sys.stderr = self.err.terminal
        self.out.close()
        self.err.close()
