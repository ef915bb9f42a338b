"""An infinite loss on one rank of two: nobody is left behind, and nothing bad gets about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from doubles import tiny
from graftwerk.axes import World
from running import TINY, differences, graftwerk, newest_state, only_run, records

KEYS = [
    "objective=poisoned",
    "augment.mixup=0",
    "steps=8",
    "save=2 steps",
    "evaluate.every=1000",
    "log.every=1",
    "faults.patience=2",
    "processes=2",
    "data.workers=0",
]


def images_of_rank(rank: int, *steps: int) -> list[int]:
    """The first image of a rank in each of these steps, counted from 0."""
    order = tiny().build(World()).plan.order
    return [order.share(step, rank, 2, 16)[0][0][1] for step in steps]


def train(folder: Path, *words: str) -> Path:
    done = graftwerk("run", TINY, *KEYS, *words, f"log.folder={folder}", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return only_run(folder)


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [r for r in records(run, "event") if r["event"] == name]


@pytest.mark.parametrize("sync", ["allreduce", "gossip"])
def test_a_step_is_left_out_and_told(tmp_path: Path, sync: str) -> None:
    (image,) = images_of_rank(1, 3)
    run = train(tmp_path / "runs", f"sync={sync}", f"objective.images=[{image}]")
    told = {event["rank"]: event for event in events(run, "step_skipped")}
    assert set(told) == ({0, 1} if sync == "allreduce" else {1})
    assert told[1]["step"] == 4
    assert told[1]["reason"] == "the loss is nan"
    assert image in told[1]["images"]
    assert len(told[1]["images"]) == 16
    if sync == "allreduce":
        assert told[0]["reason"] == "gradients are not finite"
    assert not events(run, "rollback")
    for rank in range(1 if sync == "allreduce" else 2):
        step, state = newest_state(run, rank)
        assert step == 8
        weights = state["parts"]["objective"].values()
        assert all(bool(w.isfinite().all()) for w in weights if torch.is_floating_point(w))


@pytest.mark.parametrize("sync", ["allreduce", "gossip"])
def test_all_ranks_go_back_together(tmp_path: Path, sync: str) -> None:
    """Gossip's replicas learn a few steps later that one of them can't go on."""
    images = images_of_rank(1, 4, 5)
    words = [f"sync={sync}", f"objective.images={images}".replace(" ", ""), "steps=14"]
    run = train(tmp_path / "runs", *words)
    (rollback,) = events(run, "rollback")
    assert rollback["to"] <= 4
    assert [event["step"] for event in events(run, "step_skipped") if event["rank"] == 1] == [5, 6]
    assert newest_state(run)[0] == 14
    if sync == "gossip":
        shards = [newest_state(run, rank)[1]["parts"] for rank in (0, 1)]
        assert differences(shards[0]["objective"], shards[1]["objective"])
        assert {shard["sync"]["step"] for shard in shards} == {14}
        assert all(record["loss"] is not None for record in records(run, "train")[-3:])
