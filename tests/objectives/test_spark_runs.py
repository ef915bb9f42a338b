"""Runs of SparK from their start to what they leave: pictures, exports, fine-tuned networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from graftwerk import cli
from graftwerk.axes import World
from graftwerk.config import override
from graftwerk.data.config import Augment, Digits
from graftwerk.models.config import Model
from graftwerk.models.weights import read_state_dict
from graftwerk.objectives.config import Spark
from graftwerk.optim.config import Ema, Optim
from graftwerk.run import BatchSize, Evaluate, Run, Save
from running import configured, differences, newest_state, only_run, train_here

SIZE = 64


def pretraining() -> Run:
    return Run(
        name="pretrain",
        steps=4,
        objective=Spark(width=32),
        data=Digits(fraction=0.05, holdout=0.01),
        model=Model(name="test_convnext", drop_path=0.1),
        augment=Augment(size=SIZE, crop="none"),
        evaluate=Evaluate(every=1, crop=1.0),
        batch=BatchSize(size=16, micro=8),
        optim=Optim(name="lamb", lr=1e-2, args={"max_grad_norm": 5.0}),
        save=Save(every="2 steps", keep=9),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_here(pretraining(), folder)
    return only_run(folder)


def test_resumes_with_the_same_bits(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / trained.name)
    shutil.rmtree(tmp_path / trained.name / "checkpoints" / "step-00000004")
    train_here(pretraining(), tmp_path)
    states = [newest_state(folder)[1] for folder in (trained, only_run(tmp_path))]
    assert not differences(*[state["parts"] for state in states])
    assert not differences(*[state["observer"]["scores"] for state in states])


def test_each_evaluation_draws_a_picture(trained: Path) -> None:
    pictures = sorted(path.name for path in (trained / "pictures").iterdir())
    assert pictures == ["reconstruction-00000004.png"]
    with Image.open(trained / "pictures" / pictures[0]) as image:
        assert image.size == (3 * SIZE + 8, 8 * SIZE + 18)


def test_export_gives_timm_the_encoder(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    assert cli.main(["export", str(trained), "--to", str(target), "--checkpoint", "last"]) == 0
    net = timm.create_model(f"local-dir:{target}", pretrained=True).eval()
    assert net.num_classes == 0
    features = timm.create_model(
        "test_convnext",
        pretrained=True,
        in_chans=1,
        features_only=True,
        pretrained_cfg_overlay={"file": str(target / "model.safetensors"), "num_classes": 0},
    ).eval()
    parts = pretraining().build(World())
    parts.objective.load_state_dict(newest_state(trained)[1]["parts"]["objective"])
    ours: Any = parts.objective.net.eval()
    images = torch.randn(2, 1, SIZE, SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(net(images), ours(images))
        expected = ours.forward_intermediates(images, intermediates_only=True)
        for found, own in zip(features(images), expected[-4:], strict=True):
            torch.testing.assert_close(found, own)


def test_fine_tuning_and_its_average_start_from_the_loaded_weights(
    trained: Path, tmp_path: Path
) -> None:
    changes = {"objective": "supervised", "model.pretrained": str(trained), "name": "finetune"}
    run = override(Run, pretraining().model_copy(update={"ema": Ema(decay=0.9)}), changes)
    train_here(run, tmp_path, optim__lr=0, steps=1)
    loaded = read_state_dict(trained)
    _, state = newest_state(only_run(tmp_path))
    for name, value in loaded.items():
        assert torch.equal(state["parts"]["objective"][f"net.{name}"], value), name
        assert torch.equal(state["parts"]["ema"][name], value), name
    assert "head.fc.weight" not in loaded
    notes = configured(run, tmp_path).build(World()).load_report
    assert notes == ["left as initialised, not in the file: head.fc.weight, head.fc.bias"]


def test_a_pretrained_encoder_is_fine_tuned_with_sparsity(trained: Path, tmp_path: Path) -> None:
    """Without a learning rate a weight is what was loaded, or pruned, or grown again from zero."""
    changes = {"objective": "supervised", "model.pretrained": str(trained), "name": "finetune"}
    sparse = {"sparsity": "dst", "sparsity.every": 2, "sparsity.density": 0.2, "optim.lr": 0}
    run = override(Run, pretraining(), changes | sparse)
    train_here(run, tmp_path, steps=3)
    loaded = read_state_dict(trained)
    parts = newest_state(only_run(tmp_path))[1]["parts"]
    masks: dict[str, torch.Tensor] = parts["sparsity"]["masks"]
    assert sum(int(mask.sum()) for mask in masks.values()) == pytest.approx(
        0.2 * sum(mask.numel() for mask in masks.values()), rel=1e-3
    )
    for name in masks.keys() - {"head.fc"}:
        weight, mask = parts["objective"][f"net.{name}.weight"], masks[name]
        there = weight != 0
        assert torch.equal(weight[there], loaded[f"{name}.weight"][there]), name
        assert there.any()
        assert not (there & ~mask).any()


def test_reconstruct_draws_any_image(trained: Path, tmp_path: Path) -> None:
    for number, size in enumerate([(90, 60), (64, 200)]):
        Image.effect_noise(size, 90).convert("RGBA").save(tmp_path / f"{number}.png")
    images = [str(tmp_path / f"{number}.png") for number in range(2)]
    drawn: list[bytes] = []
    for options in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"], ["--mask-ratio", "0.3"]):
        target = tmp_path / f"drawn{len(drawn)}.png"
        words = ["reconstruct", str(trained), *images, *options, "--to", str(target)]
        assert cli.main(words) == 0
        drawn.append(target.read_bytes())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    with Image.open(target) as image:
        assert image.size == (3 * SIZE + 8, 2 * SIZE + 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.png"], "no.png: can't be read (No such file"),
        ([__file__], "is no readable image"),
        ([__file__, "--mask-ratio", "1"], "objective.mask_ratio: should be less than 1"),
    ],
)
def test_reconstruct_says_what_is_wrong(
    trained: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["reconstruct", str(trained), *words]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_finds_the_loss_that_training_logged(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(trained), "--json", "evaluate.batch=5"]) == 0
    found = json.loads(capsys.readouterr().out)
    logged = newest_state(trained)[1]["observer"]["scores"]["eval_loss"]
    assert found == {"loss": pytest.approx(logged, rel=1e-5)}
