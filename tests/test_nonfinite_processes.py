"""An infinite loss on one rank of two: nobody is left behind, and nothing bad gets about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from doubles import tiny
from graftwerk.axes import World
from running import TINY, Forked, differences, newest_state, only_run, records

KEYS = [
    "objective=poisoned",
    "augment.mixup=0",
    "steps=15",
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


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [r for r in records(run, "event") if r["event"] == name]


@pytest.mark.parametrize("sync", ["allreduce", "gossip"])
def test_a_step_is_left_out_and_after_two_in_a_row_all_go_back(tmp_path: Path, sync: str) -> None:
    """Steps 3, 6 and 7. Gossip's replicas learn later that one of them can't go on, so that they
    keep a checkpoint of before: of `save.keep=1`, taken at each step, the newest would be bad."""
    images = images_of_rank(1, 2, 5, 6)
    words = [f"sync={sync}", f"objective.images={images}".replace(" ", "")]
    words += ["save=1 steps", "save.keep=1"] if sync == "gossip" else []
    words, out = [*words, f"log.folder={tmp_path / 'runs'}"], tmp_path / "out"
    with Forked("run", TINY, *KEYS, *words, out=out, ranks=2) as process:
        assert process.wait() == 0, out.read_text()
    run = only_run(tmp_path / "runs")
    told = [event for event in events(run, "step_skipped") if event["rank"] == 1]
    assert [event["step"] for event in told] == [3, 6, 7]
    for event, image in zip(told, images, strict=True):
        assert event["reason"] == "the loss is nan"
        assert image in event["images"]
        assert len(event["images"]) == 16
    others = [event for event in events(run, "step_skipped") if event["rank"] == 0]
    if sync == "allreduce":
        assert [event["step"] for event in others] == [3, 6, 7]
        assert {event["reason"] for event in others} == {"gradients are not finite"}
    else:
        assert others == []
    (rollback,) = events(run, "rollback")
    assert 1 <= rollback["to"] <= 5
    for rank in range(1 if sync == "allreduce" else 2):
        step, state = newest_state(run, rank)
        assert step == 15
        weights = state["parts"]["objective"].values()
        assert all(bool(w.isfinite().all()) for w in weights if torch.is_floating_point(w))
    if sync == "gossip":
        shards = [newest_state(run, rank)[1]["parts"] for rank in (0, 1)]
        assert differences(shards[0]["objective"], shards[1]["objective"])
        assert {shard["sync"]["step"] for shard in shards} == {15}
