"""Runs without steps, and what runs take over from others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from doubles import tiny
from graftwerk import handover, runfolder
from graftwerk.checkpoint import digest, sha256
from graftwerk.errors import CheckpointError
from graftwerk.run import Run
from graftwerk.start import start
from running import configured, differences, newest_state, records

QUICK = {"steps": 1, "ema__decay": None, "augment__mixup": 0, "log__tensorboard": False}


def trained(folder: Path, **keys: object) -> Run:
    run = configured(tiny(), folder, **(QUICK | keys))
    start(run)
    return run


def test_a_run_without_steps_evaluates_and_saves_what_it_starts_from(tmp_path: Path) -> None:
    first = trained(tmp_path, name="first")
    second = trained(tmp_path, name="second", steps=0, model__pretrained=str(first.folder))
    assert runfolder.finished(second) == start(second) == runfolder.finished(first)
    (evaluation,) = records(second.folder, "evaluation")
    assert evaluation["step"] == 0
    assert records(second.folder, "train") == []
    step, state = newest_state(second.folder)
    weights = newest_state(first.folder)[1]["parts"]["objective"]
    assert (step, differences(state["parts"]["objective"], weights)) == (0, [])


def test_what_was_taken_over_is_written_down_and_looked_at_again(tmp_path: Path) -> None:
    first = trained(tmp_path, name="first")
    keys = {"name": "second", "model__pretrained": str(first.folder)}
    second = trained(tmp_path, **keys)
    noted = json.loads((second.folder / "inputs.json").read_text())
    manifest = first.folder / "checkpoints/step-00000001/manifest.json"
    assert noted == {"model.pretrained": {"path": str(first.folder), "sha256": sha256(manifest)}}
    assert not (first.folder / "inputs.json").exists()
    trained(tmp_path, **keys)

    facts = json.loads(manifest.read_text())
    del facts["sha256"]
    facts["scores"]["eval_loss"] += 1
    manifest.write_text(json.dumps({**facts, "sha256": digest(facts)}))
    with pytest.raises(CheckpointError) as error:
        trained(tmp_path, **keys)
    then, now = noted["model.pretrained"]["sha256"][:12], sha256(manifest)[:12]
    assert f"model.pretrained: {first.folder} is no longer what this run began with" in str(
        error.value
    )
    assert f"{then}… then, {now}… now" in str(error.value)
    trained(tmp_path, **keys, resume="never")
    trained(tmp_path, **keys)


def test_a_weight_file_has_a_digest_and_a_data_set_has_none(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    assert handover.digest(tmp_path) == handover.digest(file) == sha256(file)
    assert handover.digest(tmp_path / "nowhere") is None
    run = configured(Run(), tmp_path, data="folder", data__path=str(file))
    assert handover.inputs(run) == {}
