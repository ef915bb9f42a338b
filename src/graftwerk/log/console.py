"""What the person sees: a progress bar on a real terminal, plain lines elsewhere, or warnings only.

NO_COLOR is honoured (by rich), and TERM=dumb gets plain lines.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import rich.console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from typing_extensions import override

from graftwerk.log import words
from graftwerk.log.capture import Capture, Tee
from graftwerk.log.sink import Sink
from graftwerk.log.summary import summarize

WARNINGS = (
    *("checkpoint_rejected", "image_skipped", "sink_failed"),
    *(
        "step_skipped",
        "weights_withheld",
        "rollback",
        "micro_batch",
        "straggler",
        "save_failed",
        "save_waited",
    ),
)
MOST_ALIKE = 10
"""Warnings of one kind that are shown; `log.jsonl` has all."""
LINE_INTERVAL = 2.0
"""Seconds between the lines of two records."""
FRAME_INTERVAL = 0.25
"""Seconds between two drawings of the bar."""


class Quiet(Sink):
    """Warnings on the standard error, nothing else."""

    def __init__(self) -> None:
        self._warned = Counter[str]()

    @override
    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        if name not in WARNINGS:
            return
        self._warned[name] += 1
        if self._warned[name] <= MOST_ALIKE:
            _print(sys.stderr, f"warning: {words.event(name, facts)}", "yellow")
        if self._warned[name] == MOST_ALIKE:
            _print(sys.stderr, f"further {words.event(name, {})} are only in log.jsonl", "yellow")


class Lines(Quiet):
    """A line for each evaluation and event, and for records as often as a person can read."""

    def __init__(self, folder: Path, total_steps: int, steps_per_epoch: int) -> None:
        super().__init__()
        self._folder = folder
        self._total = total_steps
        self._epochs = math.ceil(total_steps / steps_per_epoch)
        self._spoke = -math.inf

    @override
    def record(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self._spoke >= LINE_INTERVAL:
            self._spoke = now
            _print(sys.stdout, words.record(step, self._total, epoch, self._epochs, values))

    @override
    def row(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        _print(sys.stdout, words.row(epoch, values), "bold")

    @override
    def event(self, name: str, facts: Mapping[str, Any]) -> None:
        super().event(name, facts)
        if name in ("started", "resumed"):
            _print(sys.stdout, f"{self._folder.name} {name}", "bold")
            _print(sys.stdout, "\n".join(words.facts(facts)))
        elif name not in (*WARNINGS, "finished"):  # the summary tells that it is finished
            _print(sys.stdout, words.event(name, facts), "dim")

    @override
    def say(self, text: str) -> None:
        _print(sys.stdout, text)

    @override
    def close(self, status: str) -> None:
        if status == "finished":
            title, *lines = summarize(self._folder).lines()
            _print(sys.stdout, title, "bold")
            _print(sys.stdout, "\n".join(lines))


class Bar(Lines):
    """Lines without records, above a bar that shows the last one."""

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        steps_per_epoch: int,
        *,
        console: rich.console.Console,
        streams: list[Tee],
        resumed_at: int,
    ) -> None:
        super().__init__(folder, total_steps, steps_per_epoch)
        self._streams = streams
        self._steps_per_epoch = steps_per_epoch
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[last]}"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,  # drawn by `progress`: no thread, and nothing to fork with a lock
            transient=True,
            expand=True,
            redirect_stdout=False,  # `streams` print above it
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(
            "", total=total_steps, completed=resumed_at, epoch=self._epoch(resumed_at), last=""
        )
        self._progress.start()
        for stream in streams:
            stream.behind(console)
        self._drawn = -math.inf

    @override
    def record(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        last = [f"loss {values['loss']:.4g}"] if "loss" in values else []
        if "images_per_second" in values:
            last.append(words.speed(values["images_per_second"]))
        self._progress.update(self._task, last=" · ".join(last))

    @override
    def progress(self, step: int) -> None:
        now = time.monotonic()
        if now - self._drawn >= FRAME_INTERVAL:
            self._drawn = now
            self._progress.update(self._task, completed=step, epoch=self._epoch(step), refresh=True)

    @override
    def close(self, status: str) -> None:
        for stream in self._streams:
            stream.behind(None)
        self._progress.stop()
        super().close(status)

    def _epoch(self, step: int) -> str:
        now = min(step // self._steps_per_epoch + 1, self._epochs)
        return f"{now}/{self._epochs}"


def open_console(
    mode: str,
    folder: Path,
    capture: Capture | None,
    *,
    resumed_at: int,
    total_steps: int,
    steps_per_epoch: int,
) -> Sink:
    """The view for `mode` ("auto", "bar", "lines", "quiet"); the bar needs the captured streams."""
    if mode == "quiet":
        return Quiet()
    tees = [capture.out, capture.err] if capture is not None else []
    terminals = [tee for tee in tees if mode == "bar" or tee.terminal.isatty()]
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    if not terminals or mode == "lines" or (mode == "auto" and dumb):
        return Lines(folder, total_steps, steps_per_epoch)
    return Bar(
        folder,
        total_steps,
        steps_per_epoch,
        console=rich.console.Console(
            file=terminals[0].terminal, force_terminal=True if mode == "bar" else None
        ),
        streams=terminals,
        resumed_at=resumed_at,
    )


def _print(stream: TextIO, text: str, style: str | None = None) -> None:
    console = rich.console.Console(file=stream, highlight=False, markup=False, emoji=False)
    console.print(text, style=style, soft_wrap=True)
