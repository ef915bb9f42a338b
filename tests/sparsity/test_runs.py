"""Sparsity in whole runs: checkpoints, the moving average, and the log."""

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
from running import configured, differences, newest_state, records, train_again, train_here

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
    run = configured(doubles.tiny(), tmp_path, **keys, log__tensorboard=False)
    train_here(run, tmp_path)
    step, whole = newest_state(run.folder)
    train_again(run, after=8)
    assert newest_state(run.folder)[0] == step == 10
    assert differences(whole, newest_state(run.folder)[1]) == []


def test_the_moving_average_is_masked_as_the_weights(tmp_path: Path) -> None:
    run = configured(doubles.tiny(), tmp_path, **DST | {"sparsity__every": 3})
    train_here(run, tmp_path)
    state = newest_state(run.folder)[1]
    for name, mask in masks_of(state).items():
        average = state["parts"]["ema"][f"{name}.weight"]
        assert not average[~mask].any()
        assert average[mask].any()


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
