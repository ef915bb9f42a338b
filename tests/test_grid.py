"""Grids: which runs they are, and that each is trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftwerk.cli import main
from graftwerk.data.config import Higgs
from graftwerk.errors import ConfigError
from graftwerk.grid import grid, together
from graftwerk.launch.sweep import Sweep
from graftwerk.recipes import find_pipeline
from graftwerk.run import Run
from graftwerk.sparsity.config import Dst
from running import PYTHON

GRID = """
from doubles import tiny
from graftwerk.config import override
from graftwerk.grid import grid
from graftwerk.run import Run

def lots():
    base = override(Run, tiny(), {"steps": 2, "ema.decay": None, "log.tensorboard": False})
    return grid(base, {"optim.lr": (0.1, 0.2), "seed": (1,)})
"""


def test_every_combination_in_order() -> None:
    runs = grid(Run(), {"optim.lr": (0.1, 0.2), "seed": range(2)}).runs
    assert [(r.optim.lr, r.seed) for r in runs.values()] == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    assert list(runs) == ["1", "2", "3", "4"]


def test_a_value_may_set_several_keys() -> None:
    axes = {"+": ({"seed": 1, "epochs": 2}, {"seed": 5}), "optim": ({"lr": 0.3, "momentum": 0.5},)}
    runs = list(grid(Run(), axes).runs.values())
    assert [(r.seed, r.epochs, r.optim.lr) for r in runs] == [(1, 2, 0.3), (5, 90, 0.3)]


def test_runs_of_two_grids_are_trained_once() -> None:
    both = together(grid(Run(), {"seed": (0, 1)}), grid(Run(), {"seed": (1, 2)}), Run())
    assert [run.seed for run in both.runs.values()] == [0, 1, 2]


def test_overrides_reach_every_run_of_a_grid() -> None:
    runs = grid(Run(), {"seed": range(3)}).configured({"epochs": 7})
    assert [run.epochs for run in runs.values()] == [7, 7, 7]
    assert len({run.folder for run in runs.values()}) == 3


def test_runs_that_would_share_a_folder_are_no_grid() -> None:
    with pytest.raises(ConfigError, match=r"batch\.micro: is no part of a run folder's name"):
        grid(Run(), {"batch.micro": (8, 16)})


MAIN = ("mlp_cifar10", "conv_cifar10", "lenet_fashion", "mlp_higgs", "resnet56_cifar10")
OTHERS = ("resnet56_cifar100", "vgg16_cifar100", "efficientnet_tiny_imagenet")
ALL = (*MAIN, *OTHERS, "lenet_fashion_1024")
THREE = ("mlp_cifar10", "conv_cifar10", "resnet56_cifar10")
FAMILIES = {
    **{f"dense_{name}": 5 for name in ALL},
    **{f"static_{name}": 55 for name in ALL},
    **{f"static_{name}": 110 for name in ("conv_cifar10", "mlp_higgs", "resnet56_cifar10")},
    "static_resnet56_cifar100": 33,
    **{f"dst_{name}": 550 for name in ALL},
    "dst_lenet_fashion_1024": 330,
    "dst_period_mlp_cifar10": 900,
    "dst_period_conv_cifar10": 1000,
    "dst_period_resnet56_cifar10": 1000,
    "dst_mest_gamma_mlp_cifar10": 385,
    "dst_sensitivity_mlp_cifar10": 55,
    "dst_global_mlp_cifar10": 60,
    "dst_global_resnet56_cifar10": 60,
    "dst_regulariser_mlp_cifar10": 25,
    "dropout_mlp_cifar10": 5,
    **{f"dst_jaccard_{name}": 30 for name in THREE},
    **{f"dst_start_{name}": 240 for name in THREE},
}
"""Runs of each family of the paper, which has 15 of `dst_global_resnet56_cifar10` twice."""


def test_the_paper_is_shipped_with_its_numbers_of_runs() -> None:
    counts = {name: len(find_pipeline(name).runs) for name in FAMILIES}
    assert counts == FAMILIES
    assert len(FAMILIES) == 42
    assert sum(FAMILIES.values()) == 9728 - 15


@pytest.mark.parametrize(
    "name", ["dst_regulariser_mlp_cifar10", "dst_start_conv_cifar10", "static_mlp_higgs"]
)
def test_no_run_of_a_grid_is_another_s(name: str) -> None:
    runs = find_pipeline(name).runs.values()
    assert len({run.hash for run in runs}) == len(runs)


def test_the_grid_of_imagenet_has_dense_and_static_runs_too() -> None:
    runs = find_pipeline("dst_imagenet_resnet50").runs.values()
    assert [run.sparsity.kind for run in runs] == ["dense", "static", *["dst"] * 6]
    dynamic = [run.sparsity for run in runs if isinstance(run.sparsity, Dst)]
    assert {(one.grow, one.every, one.before_step) for one in dynamic} == {("gradient", 800, True)}
    assert len({one.prune for one in dynamic}) == 6


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_validates_on_its_test_images(name: str) -> None:
    for run in find_pipeline(name).runs.values():
        data = run.data
        assert not data.test if isinstance(data, Higgs) else getattr(data, "holdout", 0) == 0.1


def test_runs_at_the_start_stop_after_the_first_update() -> None:
    for run in find_pipeline("dst_start_mlp_cifar10").runs.values():
        assert run.steps == 801
        assert isinstance(run.sparsity, Dst)
        assert run.sparsity.every == 800
        assert len(run.sparsity.compare) == 5


def test_a_pool_trains_what_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {**PYTHON, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    Path("lots.py").write_text(GRID)
    words = ["run", "lots.py", "--jobs", "2", "log.folder=runs"]
    assert main(words) == 0
    assert "2 runs, 0 finished" in capfd.readouterr().out
    assert main(words) == 0
    assert "2 runs, 2 finished" in capfd.readouterr().out
    (sweep,) = (tmp_path / "runs/sweeps").glob("lots-*")
    found = Sweep.open(sweep).statuses({}).values()
    assert [(one.state, one.attempts) for one in found] == [("finished", 1)] * 2
