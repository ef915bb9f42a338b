"""Sparsity in whole runs: checkpoints, the moving average, and replicas that differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import doubles
from graftwerk import config
from graftwerk.config import override
from graftwerk.run import Run
from running import (
    TINY,
    configured,
    differences,
    graftwerk,
    newest_state,
    only_run,
    records,
    train_here,
)

DST = {"sparsity": "dst", "sparsity__every": 2, "sparsity__density": 0.2}


def masks_of(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return state["parts"]["sparsity"]["masks"]


@pytest.mark.parametrize(
    "keys",
    [
        DST,
        {**DST, "sparsity__prune": "running_snip", "sparsity__redistribute": "global"},
        {**DST, "sparsity__start_density": 0.8, "sparsity__scope": "global"},
        {"sparsity": "static", "sparsity__init": "snip", "sparsity__structure": "fan_in"},
    ],
    ids=["dst", "running", "granet-like", "static"],
)
def test_a_run_that_stops_and_goes_on_has_the_same_bits(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    run = configured(doubles.tiny(), tmp_path / "whole", **keys)
    train_here(run, tmp_path / "whole")
    cut = tmp_path / "cut"
    first = configured(run, cut)
    train_here(first, cut)
    for later in (first.folder / "checkpoints").glob("step-*"):
        if later.name > "step-00000008":
            for file in later.iterdir():
                file.unlink()
            later.rmdir()
    (first.folder / "checkpoints" / "best.json").unlink(missing_ok=True)
    train_here(first, cut)
    one, other = newest_state(run.folder)[1], newest_state(first.folder)[1]
    for state in (one, other):
        state["observer"].pop("run_id")
    assert differences(one, other) == []


def test_the_moving_average_is_masked_as_the_weights(tmp_path: Path) -> None:
    run = configured(doubles.tiny(), tmp_path, **DST | {"sparsity__every": 3})
    train_here(run, tmp_path)
    state = newest_state(run.folder)[1]
    for name, mask in masks_of(state).items():
        average = state["parts"]["ema"][f"{name}.weight"]
        assert not average[~mask].any()
        assert average[mask].any()


def test_four_replicas_that_differ_have_the_same_masks(tmp_path: Path) -> None:
    keys = ["sparsity=dst", "sparsity.every=2", "sparsity.prune=snip", "sync=gossip"]
    short = ["steps=4", "evaluate.every=1", "ema.decay=null", "log.tensorboard=false"]
    words = [TINY, *keys, *short, "processes=4", f"log.folder={tmp_path}"]
    done = graftwerk("run", *words, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    states = [newest_state(only_run(tmp_path), rank)[1] for rank in range(4)]
    first, *others = (masks_of(state) for state in states)
    assert all(differences(first, other) == [] for other in others)
    weights = [state["parts"]["objective"] for state in states]
    name = next(iter(first))
    assert not torch.equal(weights[0][f"net.{name}.weight"], weights[1][f"net.{name}.weight"])
    for state in weights:
        for name, mask in first.items():
            assert not state[f"net.{name}.weight"][~mask].any()


def test_the_log_says_what_the_masks_are(tmp_path: Path) -> None:
    run = configured(doubles.tiny(), tmp_path, **DST, log__every=5)
    train_here(run, tmp_path)
    last = records(run.folder, "train")[-1]
    assert last["density"] == pytest.approx(0.2, abs=1e-3)
    assert 0 < last["inference_flops"] < last["training_flops"] < 1
    assert last["exploration"] > last["density"]
    assert last["density/head.fc"] <= 1
    assert 0 < last["prune_rate"] < 0.5
    assert (run.folder / "sparsity.png").exists()


def test_run_json_of_a_sparse_run_reloads(tmp_path: Path) -> None:
    for kind in ("static", "dst", "gmp", "granet"):
        run = override(Run, doubles.tiny(), {"sparsity": kind, "log.folder": str(tmp_path)})
        again = config.load(Run, json.loads(json.dumps(config.dump(run))))
        assert again == run
        assert again.hash == run.hash
