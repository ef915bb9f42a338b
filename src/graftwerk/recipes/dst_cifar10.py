"""Prune and grow criteria on CIFAR-10 (`train/<class>/*` and `test/<class>/*`), for a CPU.

    graftwerk run dst_cifar10_short data.path=/path/to/cifar10 precision=bf16

The paper's conv net, dense, under fixed masks, and with six prune criteria and two growths at three
densities: 120 runs of 400 steps of 64 images, less than an epoch each and half a minute of one CPU
core, where the paper trains 35,200 steps of 128 (`dst_conv_cifar10`). The test images are scored
once, after the last step. What came out: docs/results/dst.md.
"""

from __future__ import annotations

from pathlib import Path

from graftwerk.data.config import CIFAR10_MEAN, CIFAR10_STD, Augment, Folder
from graftwerk.grid import grid, together
from graftwerk.models.config import Model
from graftwerk.optim.config import Optim, Steps
from graftwerk.pipeline import Pipeline
from graftwerk.recipes import recipe
from graftwerk.run import BatchSize, Evaluate, Run, Save

DENSITIES = (0.05, 0.1, 0.2)
SCALED = {"sparsity.scale_init": (True,)}
DYNAMIC = {"sparsity": ("dst",), "sparsity.every": (20,), **SCALED}
CRITERIA = ("magnitude", "set", "snip", "mest", "reciprocal_sensitivity", "random")


@recipe
def dst_cifar10_short() -> Pipeline:
    """Dense, static and twelve kinds of dynamic sparsity at three densities, three seeds."""
    return together(*(_seed(seed) for seed in range(3)))


@recipe
def dst_cifar10_gentle() -> Pipeline:
    """Updates that prune a tenth of the weights and not half, at density 0.1, three seeds."""
    axes = {
        **DYNAMIC,
        "sparsity.density": (0.1,),
        "sparsity.rate": (0.1,),
        "sparsity.prune": ("magnitude", "random", "reciprocal_sensitivity"),
        "sparsity.grow": ("random",),
    }
    return together(*(grid(_dense(seed), axes) for seed in range(3)))


def _seed(seed: int) -> Pipeline:
    dense = _dense(seed)
    static = grid(dense, {"sparsity": ("static",), **SCALED, "sparsity.density": DENSITIES})
    dynamic = grid(
        dense,
        {
            **DYNAMIC,
            "sparsity.density": DENSITIES,
            "sparsity.prune": CRITERIA,
            "sparsity.grow": ("random", "gradient"),
        },
    )
    return together(dense, static, dynamic)


def _dense(seed: int) -> Run:
    return Run(
        name="dst_cifar10_short",
        seed=seed,
        steps=400,
        model=Model(name="conv_cifar10"),
        data=Folder(path=Path("cifar10"), mean=CIFAR10_MEAN, std=CIFAR10_STD),
        augment=Augment(size=32, crop="none"),
        evaluate=Evaluate(every=10, crop=1.0, batch=256),
        batch=BatchSize(size=64),
        optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
        schedule=Steps(milestones=(0.5, 0.75), factor=0.1),
        save=Save(every="10000 steps"),
    )
