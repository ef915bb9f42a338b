"""What came out of a run, read from the files in its folder."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from graftwerk.files import replace
from graftwerk.log import metrics_csv, words
from graftwerk.log.jsonl import Line, read
from graftwerk.log.sink import Sink

EXPECTED = ("started", "finished", "closed")
"""Events of every run, not worth a count."""
FILES = ("metrics.csv", "curves.png", "sparsity.png", "log.jsonl", "checkpoints", "tensorboard")
FAULTS = (
    *("step_skipped", "weights_withheld", "rollback", "out_of_memory", "straggler"),
    *("image_skipped", "checkpoint_rejected", "save_failed", "save_waited", "sink_failed"),
)
"""Events that are told one by one."""
MOST_ALIKE = 5
"""Faults of a kind that are told; `log.jsonl` has all."""


@dataclass(frozen=True)
class Summary:
    folder: Path
    best: metrics_csv.Row | None
    """The best evaluation, where any has a score."""
    last: metrics_csv.Row | None
    ranked_by: str
    """The column that makes an evaluation the best."""
    seconds: float
    """From start to end, summed over all starts."""
    starts: int
    images_per_second: float | None
    """Median over the records."""
    events: Counter[str]
    """How often each kind of event happened."""
    faults: dict[str, list[str]]
    """What went wrong, by kind of event, in the order of `FAULTS`."""

    def lines(self) -> list[str]:
        """A title and one line for each fact."""
        facts = {
            "best": self._evaluation(self.best, [self.ranked_by]),
            "last": self._evaluation(self.last, list(self.last or {})[1:]),
            "time": self._time(),
            "events": ", ".join(
                f"{count} {name.replace('_', ' ')}"
                for name, count in self.events.items()
                if name not in EXPECTED
            ),
            "files": f"{self.folder}: {', '.join(self._files())}",
        }
        return [
            f"{self.folder.name} finished",
            *words.facts({k: v for k, v in facts.items() if v}),
            *(line for name, told in self.faults.items() for line in _shortened(name, told)),
        ]

    def _evaluation(self, row: metrics_csv.Row | None, columns: list[str]) -> str:
        if row is None:
            return ""
        scores = [f"{name} {words.number(name, float(row[name]))}" for name in columns if row[name]]
        return f"{', '.join(scores)} after epoch {float(row['epoch']):g}"

    def _time(self) -> str:
        starts = f" in {self.starts} starts" if self.starts > 1 else ""
        speed = self.images_per_second
        return f"{words.duration(self.seconds)}{starts}" + (
            f", {words.speed(speed)}" if speed else ""
        )

    def _files(self) -> list[str]:
        return [name for name in FILES if (self.folder / name).exists()]


def summarize(folder: Path) -> Summary:
    """Read the log and the table of a run folder; what is missing there is empty here."""
    log, rows = folder / "log.jsonl", metrics_csv.read(folder / "metrics.csv")
    lines = list(read(log)) if log.exists() else []
    starts = _starts(lines)
    speeds = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    ranked = metrics_csv.ranking(rows)
    return Summary(
        folder,
        best=metrics_csv.best(rows),
        last=rows[-1] if rows else None,
        ranked_by=ranked[0] if ranked else "",
        seconds=sum(part[-1]["time"] - part[0]["time"] for part in starts),
        starts=len(starts),
        images_per_second=statistics.median(speeds) if speeds else None,
        events=Counter(line["event"] for line in lines if line["kind"] == "event"),
        faults={
            name: [_told(line) for line in lines if line.get("event") == name]
            for name in FAULTS
            if any(line.get("event") == name for line in lines)
        },
    )


def _told(line: Line) -> str:
    """``"step 4, rank 1: the loss is nan"``."""
    where = ", ".join(f"{key} {line[key]}" for key in ("step", "rank", "host") if key in line)
    reason = " ".join(str(line.get("reason", "")).split())
    return ": ".join(part for part in (where, reason) if part)


def _shortened(name: str, told: list[str]) -> list[str]:
    more = len(told) - MOST_ALIKE
    return [
        f"  {name.replace('_', ' ')} ({len(told)})",
        *(f"    {text}" for text in told[:MOST_ALIKE]),
        *([f"    and {more} more in log.jsonl"] if more > 0 else []),
    ]


class SummaryFile(Sink):
    """`summary.txt`, once a run is finished."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @override
    def close(self, status: str) -> None:
        if status == "finished":
            text = "\n".join(summarize(self._folder).lines())
            replace(self._folder / "summary.txt", f"{text}\n".encode())


def _starts(lines: list[Line]) -> list[list[Line]]:
    """The lines of each start of the run."""
    parts: list[list[Line]] = []
    for line in lines:
        if not parts or line.get("event") in ("started", "resumed"):
            parts.append([])
        parts[-1].append(line)
    return parts
