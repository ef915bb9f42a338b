"""`graftwerk status`: how runs stand. A thousand of them in a second, so little is imported."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftwerk.launch import slurm, state
from graftwerk.launch.state import ACTIVE, STATES, Queue, Status
from graftwerk.launch.sweep import Sweep
from graftwerk.log import words


def queue_of(sweep: Sweep) -> Queue:
    """What Slurm says, if any run was handed to it."""
    handed = any(state.handed_to(member.folder) for member in sweep.members.values())
    return slurm.queue() if handed else {}


def status(folder: Path, *, as_json: bool, watch: float | None) -> None:
    """A table of all runs, again every `watch` seconds."""
    while True:
        sweep = Sweep.open(folder)
        statuses = list(sweep.statuses(queue_of(sweep)).values())
        if as_json:
            print(json.dumps([_facts(one) for one in statuses]), flush=True)
        else:
            print("\n".join(table(statuses)), flush=True)
        if watch is None or not any(one.state in ACTIVE for one in statuses):
            return
        time.sleep(watch)
        print()


def _facts(one: Status) -> dict[str, Any]:
    return {**vars(one), "folder": str(one.folder)}


def table(statuses: Sequence[Status]) -> list[str]:
    """One line a run, and how many there are of each state."""
    rows = [("run", "state", "steps", "best", "attempts", "left", "where")]
    for one in statuses:
        best = (
            f"{one.metric} {words.number(one.metric, one.value)}" if one.value is not None else ""
        )
        rows.append(
            (
                one.name,
                one.state,
                f"{one.step:,}" + (f" of {one.steps:,}" if one.steps else ""),
                best,
                str(one.attempts or ""),
                words.duration(one.eta) if one.eta is not None else "",
                one.where or one.reason,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    counts = Counter(one.state for one in statuses)
    said = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    return [*lines, f"{len(statuses)} runs: {said}"]
