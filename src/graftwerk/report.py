"""What the runs of a recipe reached and what they cost, as a table or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from graftwerk import runfolder
from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints
from graftwerk.log.jsonl import Line, read
from graftwerk.pipeline import Pipeline
from graftwerk.run import Run

HOUR = 3600.0


@dataclass(frozen=True)
class Row:
    run: str
    state: str
    top1: float | None
    device_hours: float
    """Of all attempts together, evaluations and lost steps included."""


def report(pipeline: Pipeline, *, as_json: bool) -> str:
    """A row for each run, their sum, and what else the time would have bought."""
    runs = pipeline.resolved()
    rows = {name: _row(name, run) for name, run in runs.items()}
    epochs = _end_to_end_epochs(runs, rows)
    total = sum(row.device_hours for row in rows.values())
    if as_json:
        facts = {"device_hours": total, "end_to_end_epochs": epochs}
        return json.dumps({"runs": [asdict(row) for row in rows.values()], **facts})
    width = max(len(name) for name in (*rows, "together"))
    lines = [f"{'run':{width}}  {'state':9}  {'top1':>6}  device-hours"]
    lines += [
        f"{row.run:{width}}  {row.state:9}  {_percent(row.top1):>6}  {row.device_hours:12.4f}"
        for row in rows.values()
    ]
    lines.append(f"{'together':{width}}  {'':9}  {'':6}  {total:12.4f}")
    if epochs is not None:
        lines.append(
            f"In as many device-hours the whole network trains {epochs:.1f} epochs end to end, at "
            f"the speed of its fine-tuning of {runs['finetune'].epochs:g}."
        )
    return "\n".join(lines)


def _row(name: str, run: Run) -> Row:
    entries = Checkpoints(run.folder / "checkpoints", World(), keep=1).entries()
    manifest = entries[0].manifest() if entries else {}
    scores = manifest.get("scores", {})
    done = runfolder.finished(run) is not None
    return Row(
        name,
        "finished" if done else "began" if entries else "to do",
        scores.get("ema_top1", scores.get("eval_top1")),
        seconds(_lines(run.folder)) * manifest.get("world_size", 1) / HOUR,
    )


def _lines(folder: Path) -> Iterable[Line]:
    log = folder / "log.jsonl"
    return read(log) if log.exists() else ()


def seconds(lines: Iterable[Line]) -> float:
    """How long a run's processes were at work, from the first line of each to its last."""
    total = begin = last = 0.0
    for line in lines:
        if line.get("event") in ("started", "resumed"):
            total, begin = total + last - begin, line["time"]
        last = line["time"]
    return total + last - begin


def _end_to_end_epochs(runs: Mapping[str, Run], rows: Mapping[str, Row]) -> float | None:
    """Of the network that a pipeline assembled, in the time of all of it but higher resolutions."""
    if not {"assemble", "finetune"} <= runs.keys() or rows["finetune"].device_hours == 0:
        return None
    spent = sum(row.device_hours for name, row in rows.items() if name != "finetune_high")
    return spent / rows["finetune"].device_hours * runs["finetune"].epochs


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
