"""Grids: which runs they are, and that each is trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftwerk.grid import grid, together
from graftwerk.recipes import SHIPPED, find_pipeline, shipped
from graftwerk.run import Run
from running import graftwerk

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


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dense_mlp_cifar10", 5),
        ("static_conv_cifar10", 55),
        ("dst_mlp_cifar10", 550),
        ("dst_mest_gamma_mlp_cifar10", 385),
        ("dst_sensitivity_mlp_cifar10", 55),
        ("dst_global_mlp_cifar10", 60),
        ("dst_global_resnet56_cifar10", 60),
        ("dst_jaccard_conv_cifar10", 30),
        ("dst_imagenet_resnet50", 8),
    ],
)
def test_grids_of_the_paper_have_its_numbers_of_runs(name: str, count: int) -> None:
    runs = find_pipeline(name).runs
    assert len({run.hash for run in runs.values()}) == len(runs) == count


def test_all_grids_of_the_paper_are_shipped() -> None:
    names = shipped()
    for kind in ("dense", "static", "dst"):
        assert f"{kind}_vgg16_cifar100" in names
    assert {"dst_period_mlp_cifar10", "dst_jaccard_resnet56_cifar10"} <= SHIPPED.keys()


def test_a_pool_trains_what_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "lots.py").write_text(GRID)
    words = ["run", "lots.py", "--jobs", "2", "log.folder=runs"]
    done = graftwerk(*words, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "2 runs, 0 finished" in done.stdout
    again = graftwerk(*words, cwd=tmp_path)
    assert "2 runs, 2 finished" in again.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 2
