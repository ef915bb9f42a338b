"""Runs of a small graph, each in its folder, and what becomes of wrong ones."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from graftwerk import runfolder
from graftwerk.axes import World
from graftwerk.config import override
from graftwerk.data.config import Augment, Digits
from graftwerk.errors import CheckpointError, ConfigError, GraftwerkError
from graftwerk.incubation import Phases, Plan, incubate
from graftwerk.models.config import Model
from graftwerk.models.division import Division
from graftwerk.models.stages import STAGES, layout
from graftwerk.models.weights import read_state_dict
from graftwerk.optim.config import Optim
from graftwerk.parts import build_net
from graftwerk.pipeline import Pipeline
from graftwerk.run import BatchSize, Evaluate, Run, Save
from graftwerk.score import export_run, export_stages
from graftwerk.train import train

PLAN = Plan(divide=(2, 1, 2), meta=(1, 1, 1))


def graph(**keys: Any) -> dict[str, Run]:
    whole = Run(
        name="net",
        steps=2,
        model=Model(
            name="vit_tiny_patch16_224",
            depths=(5,),
            args={"patch_size": 8, "embed_dim": 16, "num_heads": 2},
        ),
        data=Digits(fraction=0.05, holdout=0.01),
        augment=Augment(size=16, crop="none"),
        evaluate=Evaluate(every=1, crop=1.0),
        batch=BatchSize(size=16),
        optim=Optim(name="adamw", lr=1e-2),
        save=Save(every="1 step"),
    )
    phases = Phases(meta={}, module={}, finetune={}, high={"augment.size": 24})
    runs = Pipeline(incubate(whole, PLAN, phases))
    keys = {key.replace("__", "."): value for key, value in keys.items()}
    return runs.configured({"log.console": "quiet", "log.tensorboard": False, **keys})


def run_here(run: Run) -> dict[str, float]:
    runfolder.prepare(run)
    return train(run, World())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The whole graph, once."""
    runs = graph(log__folder=str(tmp_path_factory.mktemp("runs")))
    for run in runs.values():
        run_here(run)
    return runs


def assembled(run: Run, *modules: Path) -> dict[str, torch.Tensor]:
    model = run.model.model_copy(update={"modules": modules})
    return build_net(run.model_copy(update={"model": model}), 10)[0].state_dict()


def test_module_i_comes_from_run_i(trained: dict[str, Run]) -> None:
    whole = read_state_dict(trained["assemble"].folder)
    hybrids = [read_state_dict(trained[f"module_{i}"].folder) for i in range(3)]
    sources = {0: (0, 0), 1: (0, 1), 2: (1, 1), 3: (2, 2), 4: (2, 3)}
    for name, tensor in whole.items():
        if name.startswith("blocks."):
            run, block = sources[int(name.split(".")[1])]
            theirs = name.replace(name.split(".")[1], str(block), 1)
        else:
            run, theirs = (2 if name.startswith(("norm", "head")) else 0), name
        assert torch.equal(tensor, hybrids[run][theirs]), name


def test_it_is_evaluated_as_it_is_and_then_trained(trained: dict[str, Run]) -> None:
    before, after = (runfolder.finished(trained[name]) for name in ("assemble", "finetune"))
    assert before is not None
    assert after is not None
    assert before["eval_loss"] != after["eval_loss"]
    assert trained["assemble"].steps == 0


def test_positions_are_resized_for_another_resolution(trained: dict[str, Run]) -> None:
    low, high = (read_state_dict(trained[n].folder) for n in ("finetune", "finetune_high"))
    first, _ = build_net(trained["finetune_high"], 10)
    positions = first.state_dict()["pos_embed"]
    assert low["pos_embed"].shape == (1, 5, 16)
    assert high["pos_embed"].shape == positions.shape == (1, 10, 16)
    assert torch.equal(positions[:, 0], low["pos_embed"][:, 0])
    grid = low["pos_embed"][:, 1:].reshape(1, 2, 2, 16).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, (3, 3), mode="bicubic", antialias=True)
    expected = resized.permute(0, 2, 3, 1).reshape(1, 9, 16)
    torch.testing.assert_close(positions[:, 1:], expected)


def test_another_number_of_classes(trained: dict[str, Run]) -> None:
    net, notes = build_net(trained["finetune"], 7)
    whole = read_state_dict(trained["assemble"].folder)
    state = net.state_dict()
    assert state["head.weight"].shape == (7, 16)
    assert all(torch.equal(state[n], whole[n]) for n in whole if not n.startswith("head"))
    assert any("head.weight" in note for note in notes)


def test_wrong_modules_are_refused_by_name(trained: dict[str, Run], tmp_path: Path) -> None:
    run, folders = trained["assemble"], [trained[f"module_{i}"].folder for i in range(3)]
    for modules, problems in {
        (folders[1], folders[0], folders[2]): [
            r"module_1-\w+ is module 1 and stands in place 0",
            r"module_0-\w+ is module 0 and stands in place 1",
        ],
        (folders[0], folders[1]): [r"division \[2,1,2\] also has module 2, which is missing"],
        (trained["meta"].folder,): [r"is no module, but a run with objective=supervised"],
        (tmp_path / "no",): [r"no does not exist"],
    }.items():
        with pytest.raises(ConfigError) as error:
            assembled(run, *modules)
        for problem in problems:
            assert any(re.search(problem, line) for line in error.value.problems), problem
        assert all(line.startswith("model.modules: ") for line in error.value.problems)


def changed(folder: Path, to: Path, **objective: Any) -> Path:
    """A copy of a module's run with other words in its run.json."""
    shutil.copytree(folder, to)
    tree = json.loads((to / "run.json").read_text())
    tree["objective"] |= objective
    (to / "run.json").write_text(json.dumps(tree))
    return to


def test_modules_of_another_division_network_or_meta(
    trained: dict[str, Run], tmp_path: Path
) -> None:
    run, folders = trained["assemble"], [trained[f"module_{i}"].folder for i in range(3)]
    other = changed(folders[2], tmp_path / "other", divide=[1, 2, 2])
    with pytest.raises(ConfigError, match=r"other is of the division \[1,2,2\], and .*\[2,1,2\]"):
        assembled(run, *folders[:2], other)
    wide = override(Run, run, {"model.args": {**run.model.args, "embed_dim": 32}})
    with pytest.raises(ConfigError, match=r"model.args=.*'embed_dim': 16.* here it is .*32"):
        assembled(wide, *folders)
    runs = graph(log__folder=str(tmp_path), meta__seed=1)
    run_here(runs["meta"])
    run_here(runs["module_1"])
    with pytest.raises(ConfigError, match=r"learned in another meta network than .*module_0"):
        assembled(run, folders[0], runs["module_1"].folder, folders[2])


def test_a_module_that_has_not_finished(trained: dict[str, Run], tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(trained["module_2"].folder, folder)
    newest = max((folder / "checkpoints").glob("step-*"))
    shutil.rmtree(newest)
    folders = [trained[f"module_{i}"].folder for i in range(2)]
    with pytest.raises(CheckpointError, match=r"half: this run has not finished yet"):
        assembled(trained["assemble"], *folders, folder)


def test_published_checkpoints_are_assembled(trained: dict[str, Run], tmp_path: Path) -> None:
    """file i gives module i; a file of fewer modules is refused."""
    run = trained["assemble"]
    whole = read_state_dict(run.folder)
    net, _ = build_net(run, 10)
    stages = layout(net).split(whole, Division.of((2, 1, 2), (5,), key=""))
    files = [tmp_path / f"{number}.pth" for number in range(3)]
    for number, file in enumerate(files):
        torch.save({STAGES: [s if i == number else {} for i, s in enumerate(stages)]}, file)
    found = assembled(run, *files)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    with pytest.raises(GraftwerkError, match=r"0.pth is of 3 modules, and 2 are named"):
        assembled(run, *files[:2])


def test_a_module_is_not_sparsified(trained: dict[str, Run], tmp_path: Path) -> None:
    run = override(
        Run, trained["module_0"], {"sparsity": "dst", "log.folder": str(tmp_path), "name": "x"}
    )
    with pytest.raises(ConfigError, match=r"sparsity: .* use sparsity=dst in the fine-tuning"):
        run.build(World())
    assert not (tmp_path / "x").exists()


def test_the_incubated_network_is_fine_tuned_sparse(
    trained: dict[str, Run], tmp_path: Path
) -> None:
    keys = {"sparsity": "dst", "sparsity.density": 0.5, "log.folder": str(tmp_path)}
    run = override(Run, trained["finetune"], keys)
    run_here(run)
    state = read_state_dict(run.folder)
    weights = [t for name, t in state.items() if name.startswith("blocks.") and t.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert 0.3 < zeros / sum(weight.numel() for weight in weights) < 0.7


def test_published_format_both_ways(trained: dict[str, Run], tmp_path: Path) -> None:
    source, file = trained["finetune"].folder, tmp_path / "finished_checkpoint.pth"
    whole = read_state_dict(source)
    print(export_stages(source, file, "best", "auto", "[2,1,2]"))
    saved = torch.load(file, weights_only=True)
    assert [len(stage) for stage in saved[STAGES]] == [28, 12, 28]
    assert "blocks.1.norm1.weight" in saved[STAGES][2]
    assert torch.equal(saved["model"]["stages.2.blocks.0.norm1.bias"], whole["blocks.3.norm1.bias"])
    back = read_state_dict(file)
    assert set(back) == set(whole)
    assert all(torch.equal(back[name], whole[name]) for name in whole)
    for target, divide, problem in (
        (file, "[2,1,2]", "exists already"),
        (tmp_path / "new", "[2,2]", r"--divide: \[2,2\] are 4 blocks in 2 modules"),
        (tmp_path / "new", "two", r"--divide: should be the blocks of each module"),
    ):
        with pytest.raises(ConfigError, match=problem):
            export_stages(source, target, "best", "auto", divide)
    assert not (tmp_path / "new").exists()


def test_an_incubated_network_is_timms(trained: dict[str, Run], tmp_path: Path) -> None:
    run = trained["finetune"]
    export_run(run.folder, tmp_path / "out", "best", "auto")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_args"]["depth"] == 5
    net = timm.create_model(
        config["architecture"], **config["model_args"], in_chans=1, num_classes=10
    )
    net.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    assert all(torch.equal(net.state_dict()[n], t) for n, t in read_state_dict(run.folder).items())
