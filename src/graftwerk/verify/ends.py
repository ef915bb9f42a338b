"""What a run left behind, by what it is to people: weights, moving average, masks, metrics …"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints, read_tensors
from graftwerk.errors import GraftwerkError
from graftwerk.log import jsonl

IN_PARTS = {
    "weights": "objective",
    "moving average": "ema",
    "optimizer": "optimizer",
    "masks": "sparsity",
    "exchange": "sync",
    "precision": "precision",
}
"""What `Parts.state_dict` calls it."""
REPEATED = ("loss", "lr", "weight_decay", "grad_norm")
"""What a record of the log has to have the same; the rest are times and loads."""
Named = dict[str, Any]


def end(folder: Path) -> Named:
    """The last checkpoint of a finished run, and its metrics. Raises GraftwerkError where it has
    none."""
    entries = Checkpoints(folder / "checkpoints", World(), keep=1).entries()
    manifest = entries[0].verify() if entries else {}
    if not manifest.get("finished"):
        raise GraftwerkError(f"{folder}: this run has not finished")
    states = {
        name.removesuffix(".pt"): named(read_tensors(entries[0].folder / name))
        for name in sorted(manifest["files"])
    }
    kinds = next(iter(states.values()))
    own = {kind: {rank: state[kind] for rank, state in states.items()} for kind in kinds}
    by_kind = {kind: ranks["rank0"] if len(ranks) == 1 else ranks for kind, ranks in own.items()}
    return {"losses": losses(folder), "metrics.csv": rows(folder)} | by_kind


def named(state: Mapping[str, Any]) -> Named:
    """A checkpoint's state, in the order in which a difference says most."""
    parts, observer = dict(state["parts"]), dict(state["observer"])
    observer.pop("run_id")
    order = {**state["order"], "samples": observer.pop("samples")}
    found: Named = {"sample order": order}
    found |= {kind: parts.pop(name) for kind, name in IN_PARTS.items()}
    found["random generators"] = [rank["random"] for rank in state["ranks"]]
    found["scores"] = {name: observer.pop(name) for name in ("scores", "best")}
    known = ("parts", "observer", "order", "ranks")
    ranks = [{k: v for k, v in rank.items() if k != "random"} for rank in state["ranks"]]
    rest = {name: value for name, value in state.items() if name not in known}
    found["everything else"] = {**rest, **parts, **observer, "ranks": ranks}
    return {kind: value for kind, value in found.items() if value not in (None, {})}


def losses(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of the steps that count, by step."""
    lines = jsonl.surviving(jsonl.read(folder / "log.jsonl"))
    records = [line for line in lines if line["kind"] == "train"]
    return {
        f"step {line['step']}": {name: line[name] for name in REPEATED if name in line}
        for line in records
    }


def rows(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()
