"""What "Fantastic Weights" (arXiv 2306.12230) varied around its main grids (`dst.py`).

`dst_period_…` varies the update period, `dst_jaccard_…` compares what six criteria would prune from
the same state over training, and `dst_start_…` at the first update, after which those runs stop.
Not trained with graftwerk yet.
"""

from __future__ import annotations

from typing import Any

from graftwerk.grid import grid, together
from graftwerk.models.config import Model
from graftwerk.optim.config import Constant
from graftwerk.pipeline import Pipeline
from graftwerk.recipes import recipe
from graftwerk.recipes.dst import (
    BASES,
    CRITERIA,
    DENSITIES,
    GROWTH,
    SEEDS,
    mlp,
    resnet,
    ship,
    sparse,
)
from graftwerk.run import Run

SIX = (*CRITERIA, "random")
COMPARED = ("mlp_cifar10", "conv_cifar10", "resnet56_cifar10")
OCTAVES = tuple(25 * 2**i for i in range(10))
PERIODS = {
    "mlp_cifar10": OCTAVES[:9],
    "conv_cifar10": (*OCTAVES[:9], 150),
    "resnet56_cifar10": OCTAVES,
}
FIRST_UPDATE = 800


def period(name: str) -> Pipeline:
    keys: dict[str, Any] = {"density": (0.1, 0.2), "prune": CRITERIA, "grow": GROWTH}
    return sparse(BASES[name](f"dst_period_{name}"), "dst", **keys, every=PERIODS[name])


def over_training(name: str) -> Pipeline:
    return _compared(BASES[name](f"dst_jaccard_{name}"), density=0.2, grow="gradient")


def at_start(name: str) -> Pipeline:
    """The step after the first update is the last; until there the learning rate is at its peak."""
    run = BASES[name](f"dst_start_{name}")
    run = run.model_copy(update={"steps": FIRST_UPDATE + 1, "schedule": Constant()})
    rates = (0.5, 0.25, 0.125, 0.0625)
    keys: dict[str, Any] = {"rate_schedule": "constant", "grow": "random"}
    return _compared(run, density=(0.2, 1.0), rate=rates, **keys)


def _compared(run: Run, **keys: Any) -> Pipeline:
    """Each of six criteria in use, compared with the other five at every update."""
    grids = (
        sparse(run, "dst", prune=one, compare=([other for other in SIX if other != one],), **keys)
        for one in SIX
    )
    return together(*grids)


for _name in COMPARED:
    ship(
        f"dst_period_{_name}",
        "How often masks are updated: every 25 steps to thousands.",
        lambda n=_name: period(n),
    )
    ship(
        f"dst_jaccard_{_name}",
        "Which weights six criteria would prune from the same state, over training.",
        lambda n=_name: over_training(n),
    )
    ship(
        f"dst_start_{_name}",
        "Which weights six criteria would prune at the first update, at four rates.",
        lambda n=_name: at_start(n),
    )


@recipe
def dst_mest_gamma_mlp_cifar10() -> Pipeline:
    """MEST's γ from 0.001 to 1000 on the MLP, masks updated every 100 steps."""
    gammas = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
    keys: dict[str, Any] = {
        "density": DENSITIES,
        "prune": "mest",
        "grow": "random",
        "gamma": gammas,
        "every": 100,
    }
    return sparse(mlp("dst_mest_gamma_mlp_cifar10"), "dst", **keys)


@recipe
def dst_sensitivity_mlp_cifar10() -> Pipeline:
    """Pruning by |g|/|w| on the MLP, masks updated every 100 steps."""
    keys: dict[str, Any] = {
        "density": DENSITIES,
        "prune": "sensitivity",
        "grow": "random",
        "every": 100,
    }
    return sparse(mlp("dst_sensitivity_mlp_cifar10"), "dst", **keys)


@recipe
def dst_global_mlp_cifar10() -> Pipeline:
    """One ranking over all layers of the MLP, uniform densities at the start."""
    keys: dict[str, Any] = {
        "density": (0.1, 0.15, 0.2),
        "scope": "global",
        "init": "uniform",
        "grow": "random",
    }
    prune = tuple(name for name in CRITERIA if name != "set")
    return sparse(mlp("dst_global_mlp_cifar10"), "dst", **keys, prune=prune, every=100)


@recipe
def dst_global_resnet56_cifar10() -> Pipeline:
    """One ranking over all layers of a ResNet-56."""
    keys: dict[str, Any] = {
        "density": (0.05, 0.1, 0.15),
        "scope": "global",
        "grow": "random",
        "every": 100,
    }
    prune = tuple(name for name in CRITERIA if name != "set")
    return sparse(resnet("dst_global_resnet56_cifar10"), "dst", **keys, prune=prune)


@recipe
def dst_regulariser_mlp_cifar10() -> Pipeline:
    """All weights exist, and updates restart those that are worth least: a regulariser?"""
    keys: dict[str, Any] = {"density": 1.0, "prune": CRITERIA, "grow": "random", "every": 100}
    return sparse(mlp("dst_regulariser_mlp_cifar10"), "dst", **keys)


@recipe
def dropout_mlp_cifar10() -> Pipeline:
    """The dense MLP with dropout of 5 % at the input of each layer."""
    model = Model(name="mlp_cifar10", drop=0.05)
    run = mlp("dropout_mlp_cifar10").model_copy(update={"model": model})
    return grid(run, {"seed": SEEDS})
