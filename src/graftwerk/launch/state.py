"""How a run stands, read from the plain files in its folder: thousands of them in a second.

Nothing here imports torch. Files that are missing, half-written or of a crash count for nothing, so
that a state can always be told. What a run folder tells:

- `job.json`: where it was last handed to, {"job": "71_3"} or {"pid": 4711, "host": "login1"};
- `attempts.jsonl`: a line when an attempt begins, and one when it ends, with its exit code;
- `checkpoints/*/manifest.json`, `facts.json`, `log.jsonl`: how far it came, and its scores.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graftwerk.errors import AGAIN, APART, CRASH, DIVERGED, INTERRUPTED, STORAGE_ERROR, STUCK

FINISHED, RUNNING, QUEUED, WAITING = "finished", "running", "queued", "waiting"
FAILED, CANCELLED, STOPPED, DELETED = "failed", "cancelled", "stopped", "deleted"
STATES = (RUNNING, QUEUED, WAITING, STOPPED, CANCELLED, FAILED, DELETED, FINISHED)
ACTIVE = (RUNNING, QUEUED)
RESUMED_BY_ITSELF = (AGAIN, APART, INTERRUPTED, 137, 143)
"""Codes after which the same command goes on; a scheduler gives them to whom it kills."""

MEANING = {
    CRASH: "crashed",
    2: "a mistake of the command or its data",
    DIVERGED: "diverged",
    STORAGE_ERROR: "the disk took no more",
    STUCK: "gave up",
}
TAIL = 8192
Json = dict[str, Any]


@dataclass(frozen=True)
class Queued:
    """What the scheduler says of a job."""

    running: bool
    where: str
    """Nodes, or why it waits."""


Queue = Mapping[str, Queued]


@dataclass(frozen=True)
class Status:
    folder: Path
    name: str
    """In its pipeline; else that of the folder."""
    state: str
    step: int = 0
    steps: int | None = None
    metric: str = ""
    value: float | None = None
    """The best so far."""
    attempts: int = 0
    where: str = ""
    eta: float | None = None
    """Seconds that are left, as the run itself reckons."""
    reason: str = ""
    scores: Json | None = None
    """Of the end of a finished run."""


def status(folder: Path, queue: Queue, name: str = "") -> Status:
    name = name or folder.name
    if not (folder / "run.json").exists():
        return Status(folder, name, DELETED, reason="its folder is gone")
    newest = _newest_manifest(folder)
    lines = _lines(folder / "attempts.jsonl")
    metric, value = _metric(_object(folder / "checkpoints" / "best.json") or newest.get("scores"))
    step = newest.get("step", 0)
    known = Status(
        folder,
        name,
        FINISHED,
        step,
        steps=step,
        metric=metric,
        value=value,
        attempts=sum("began" in line for line in lines),
        scores=newest.get("scores"),
    )
    if newest.get("finished"):
        return known
    state, where, reason = _state(_live(folder, queue), lines)
    last: Json = {}
    if state == RUNNING:
        last = next((line for line in reversed(_tail(folder)) if line.get("kind") == "train"), {})
    return replace(
        known,
        state=state,
        step=max(step, last.get("step", 0)),
        steps=_object(folder / "facts.json").get("steps"),
        where=where,
        eta=last.get("remaining_seconds"),
        reason=reason,
        scores=None,
    )


def handed_to(folder: Path) -> str:
    """The scheduler's id of the job that a run was last given to, or an empty text."""
    return str(_object(folder / "job.json").get("job", ""))


def hand_to(folder: Path, **where: Any) -> None:
    """Write down who has the run now: ``job="71_3"``, or ``pid=…`` of this machine."""
    host = {"host": socket.gethostname()} if "pid" in where else {}
    contents = {**where, **host, "since": round(time.time())}
    put(folder / "job.json", json.dumps(contents))


def put(path: Path, text: str) -> None:
    """Replace a file as a whole, unless it says that already.

    Nothing is flushed to the disk: hundreds are written at once, and can be written again.
    """
    if path.exists() and path.read_text(errors="replace") == text:
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def note(folder: Path, **line: Any) -> None:
    """Append a line to the run's `attempts.jsonl`."""
    with (folder / "attempts.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def begin(folder: Path, pid: int) -> None:
    """A process of this machine begins an attempt."""
    hand_to(folder, pid=pid)
    note(folder, attempt=attempts_of(folder) + 1, began=round(time.time()), pid=pid)


def end(folder: Path, code: int) -> None:
    """The attempt that began last has ended."""
    note(folder, attempt=attempts_of(folder), ended=round(time.time()), code=code)


def is_open(folder: Path) -> bool:
    """Whether an attempt began whose end nobody has written down."""
    lines = [
        line for line in _lines(folder / "attempts.jsonl") if "began" in line or "code" in line
    ]
    return bool(lines) and "began" in lines[-1]


def attempts_of(folder: Path) -> int:
    return sum("began" in line for line in _lines(folder / "attempts.jsonl"))


def forget_attempts(folder: Path) -> None:
    """Begin to count anew; the old lines are kept beside."""
    file = folder / "attempts.jsonl"
    if file.exists():
        number = len(list(folder.glob("attempts-*.jsonl"))) + 1
        file.rename(folder / f"attempts-{number}.jsonl")


def _live(folder: Path, queue: Queue) -> Queued | None:
    """What the scheduler, or this machine, knows of the job that has the run."""
    job = _object(folder / "job.json")
    if "pid" in job:
        alive = process_here(folder) is not None
        return Queued(True, str(job["host"])) if alive else None
    return queue.get(str(job.get("job", "")))


def process_here(folder: Path) -> int | None:
    """The process of this machine that `folder` was handed to, if it lives."""
    job = _object(folder / "job.json")
    if job.get("host") != socket.gethostname() or not isinstance(job.get("pid"), int):
        return None
    return job["pid"] if Path(f"/proc/{job['pid']}").exists() else None


def _state(live: Queued | None, lines: list[Json]) -> tuple[str, str, str]:
    """(state, where, reason)."""
    last = lines[-1] if lines else {}
    if live is not None:
        return (RUNNING, live.where, "") if live.running else (QUEUED, "", live.where)
    if any("cancelled" in line for line in _of_last_attempt(lines)):
        return CANCELLED, "", ""
    code = last.get("code")
    if code is None:
        return (STOPPED, "", "its process is gone") if "began" in last else (WAITING, "", "")
    if code in RESUMED_BY_ITSELF or code == 0:
        return STOPPED, "", "nobody goes on with it"
    said = last.get("reason") or MEANING.get(code, "ended")
    return FAILED, "", f"{said} (exit code {code})"


def _of_last_attempt(lines: list[Json]) -> list[Json]:
    begins = [number for number, line in enumerate(lines) if "began" in line]
    return lines[begins[-1] :] if begins else lines


def _newest_manifest(folder: Path) -> Json:
    try:
        with os.scandir(folder / "checkpoints") as entries:
            found = sorted(entry.path for entry in entries if entry.name.startswith("step-"))
    except OSError:
        return {}
    for path in reversed(found):
        if manifest := _object(Path(path, "manifest.json")):
            return manifest
    return {}


def _metric(scores: Json | None) -> tuple[str, float | None]:
    """The score that ranks: accuracy before loss, of the average before the weights."""
    for name in ("ema_top1", "eval_top1", "ema_loss", "eval_loss"):
        if scores and isinstance(scores.get(name), int | float):
            return name, scores[name]
    return "", None


def _tail(folder: Path) -> list[Json]:
    """The last lines of the log that are whole."""
    try:
        with (folder / "log.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return _parsed(file.read().decode(errors="replace"))
    except OSError:
        return []


def _lines(path: Path) -> list[Json]:
    try:
        return _parsed(path.read_text(errors="replace"))
    except OSError:
        return []


def _parsed(text: str) -> list[Json]:
    found: list[Json] = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _object(path: Path) -> Json:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
