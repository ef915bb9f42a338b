"""What is done with runs that were started: `results`, `retry`, `cancel` and `logs`."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwerk import config
from graftwerk.errors import DONE, ConfigError
from graftwerk.launch import slurm, state
from graftwerk.launch.state import ACTIVE, CANCELLED, FAILED, FINISHED, Status
from graftwerk.launch.sweep import Member, Sweep
from graftwerk.launch.table import queue_of

# ---------------------------------------------------------------- results


def results(folder: Path, out: Path | None) -> list[str]:
    """One row a finished run: the keys that differ between runs, and its scores. What to say."""
    sweep = Sweep.open(folder)
    statuses = sweep.statuses(queue_of(sweep))
    rows = rows_of(sweep, statuses)
    missing = [f"{one.name} ({one.state})" for one in statuses.values() if one.state != FINISHED]
    said = [f"{len(rows)} of {len(statuses)} runs are finished"]
    said += [f"missing: {', '.join(missing)}"] if missing else []
    if out is None:
        return [*_as_text(rows), *said]
    if out.suffix == ".csv":
        with out.open("w", newline="") as file:
            table = csv.DictWriter(file, _columns(rows))
            table.writeheader()
            table.writerows(rows)
    elif out.suffix == ".parquet":
        _write_parquet(rows, out)
    else:
        raise ConfigError([f"--out {out}: should end in .csv or .parquet"])
    return [*said, str(out)]


def rows_of(sweep: Sweep, statuses: Mapping[str, Status]) -> list[dict[str, Any]]:
    """By run: its name, the dotted keys whose values differ between the runs, step, scores."""
    trees = {name: _flat(_tree(sweep.members[name])) for name in statuses}
    keys = list(dict.fromkeys(key for tree in trees.values() for key in tree))
    varying = [key for key in keys if len({repr(tree.get(key)) for tree in trees.values()}) > 1]
    return [
        {
            "run": name,
            **{key: trees[name].get(key) for key in varying if not key.startswith("launch.")},
            "steps": one.step,
            **(one.scores or {}),
        }
        for name, one in statuses.items()
        if one.state == FINISHED
    ]


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _as_text(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = _columns(rows)
    lines = [columns] + [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
        if columns
    ]


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def _write_parquet(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            ["--out: Parquet needs the package pyarrow; .csv needs nothing"]
        ) from None
    columns = {name: [row.get(name) for row in rows] for name in _columns(rows)}
    pyarrow.parquet.write_table(pyarrow.table(columns), out)


def _tree(member: Member) -> dict[str, Any]:
    file = member.folder / "run.json"
    return config.read(file) if file.exists() else {}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; lists are their JSON."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


# ---------------------------------------------------------------- retry, cancel, logs


def choose(sweep: Sweep, statuses: Mapping[str, Status], where: Sequence[str]) -> list[str]:
    """The failed runs; with `where` (``key=value``), those with these values, failed or not."""
    if not where:
        return [name for name, one in statuses.items() if one.state in (FAILED, CANCELLED)]
    wanted = config.parse_overrides(where)
    found: list[str] = []
    for name, member in sweep.members.items():
        tree = _flat(_tree(member))
        values = {key: tree.get(key, tree.get(f"{key}.kind")) for key in wanted}
        if values == wanted and statuses[name].state not in (*ACTIVE, FINISHED):
            found.append(name)
    return found


def cancel(folder: Path) -> str:
    """End all that is queued or running: what trains saves its state first."""
    sweep = Sweep.open(folder)
    queue = queue_of(sweep)
    active = [one for one in sweep.statuses(queue).values() if one.state in ACTIVE]
    for one in active:
        state.note(one.folder, cancelled=round(time.time()))
    slurm.cancel(job for one in active if (job := state.handed_to(one.folder)) in queue)
    places = [sweep.folder] if sweep.folder is not None else []
    for place in [*places, *(one.folder for one in active)]:
        if (pid := state.process_here(place)) is not None:
            os.kill(pid, signal.SIGTERM)
    elsewhere = [one.where for one in active if not state.handed_to(one.folder)]
    others = sorted(set(elsewhere) - {socket.gethostname()})
    return f"{len(active)} runs cancelled" + (
        f"; not those on {', '.join(others)}" if others else ""
    )


def logs(folder: Path, name: str) -> int:
    """Print what a run said: its own output, else its job's."""
    sweep = Sweep.open(folder)
    if name not in sweep.members:
        raise ConfigError([f"{name}: no such run here{config.nearest(name, sweep.members)}"])
    member = sweep.members[name]
    files = [member.folder / "stdout.txt", member.folder / "stderr.txt"]
    if sweep.folder is not None and (job := state.handed_to(member.folder)):
        files.append(sweep.folder / "logs" / f"{job}.out")
    for file in files:
        if file.exists() and (text := file.read_text(errors="replace").rstrip()):
            print(f"==> {file}\n{text}")
    return DONE
