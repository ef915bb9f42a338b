"""`log.jsonl`: one JSON object per line, appended for ever.

Every line has `time` (seconds since 1970) and `kind`: "train" (a record of the loop), "evaluation"
(a row of `metrics.csv`), "figure", "event". A number that is not finite is null, and is spelled
out under `nonfinite`. A resumed run repeats the steps after its checkpoint: `surviving` leaves out
the lines that were overtaken.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from graftwerk.log.sink import Sink

Line = dict[str, Any]


class Lines:
    """A file of JSON lines, open for appending.

    What a crash or a full disk left half-written gets a newline of its own, so that every other
    line stays valid JSON. Each line reaches the operating system before `write` returns. Where
    the file was deleted, or its server lost it, it is made anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        self._file = self._path.open("ab+", buffering=0)
        self._torn = self._ends_torn()

    def _is_gone(self) -> bool:
        try:
            return os.fstat(self._file.fileno()).st_nlink == 0
        except OSError:
            return True

    def _ends_torn(self) -> bool:
        if self._file.seek(0, os.SEEK_END) == 0:
            return False
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) != b"\n"

    def write(self, line: Mapping[str, Any]) -> None:
        """Raises OSError where the disk takes no more; the next call may succeed."""
        if self._is_gone():
            self._file.close()
            self._open()
        contents = b"\n" * self._torn + encode(line)
        self._torn = True
        written = self._file.write(contents)
        if written != len(contents):
            fitted = f"only {written} of {len(contents)} bytes fitted"
            raise OSError(errno.ENOSPC, fitted, str(self._path))
        self._torn = False

    def close(self) -> None:
        self._file.close()


def encode(line: Mapping[str, Any]) -> bytes:
    """One line of valid JSON, newline included; anything unknown is spelled with `str`."""
    nonfinite = {key: str(value) for key, value in line.items() if not _finite(value)}
    extra = {"nonfinite": nonfinite} if nonfinite else {}
    plain = json.loads(json.dumps({**line, **extra}, default=_plain), parse_constant=lambda _: None)
    return json.dumps(plain, ensure_ascii=False).encode() + b"\n"


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def read(path: Path) -> Iterator[Line]:
    """The lines of a log that are whole."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def surviving(lines: Iterable[Line]) -> list[Line]:
    """The lines of steps that count: what came after a checkpoint that a later start went back to
    is left out. Events all stay."""
    kept: list[Line] = []
    for line in lines:
        if line.get("event") in ("started", "resumed"):
            start = line.get("step", 0)
            kept = [old for old in kept if old["kind"] == "event" or old["step"] <= start]
        kept.append(line)
    return kept


def append(folder: Path, event: str, facts: Mapping[str, Any]) -> None:
    """An event in the log of a run whose logbook is closed, or another process's."""
    lines = Lines(folder / "log.jsonl")
    lines.write({"time": round(time.time(), 3), "kind": "event", "event": event, **facts})
    lines.close()


class JsonLines(Sink):
    """The log that holds everything."""

    durable = True

    def __init__(self, folder: Path) -> None:
        self._lines = Lines(folder / "log.jsonl")

    @override
    def record(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        self._write("train", step=step, epoch=epoch, **values)

    @override
    def row(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        self._write("evaluation", step=step, epoch=epoch, **values)

    @override
    def figure(self, name: str, path: Path, step: int) -> None:
        self._write("figure", step=step, name=name, path=str(path))

    @override
    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        self._write("event", event=name, **facts)

    @override
    def close(self, status: str) -> None:
        self._write("event", event="closed", status=status)
        self._lines.close()

    def _write(self, kind: str, **values: Any) -> None:
        self._lines.write({"time": round(time.time(), 3), "kind": kind, **values})
