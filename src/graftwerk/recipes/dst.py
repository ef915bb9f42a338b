"""The grids of "Fantastic Weights and How to Find Them" (arXiv 2306.12230), a recipe for each.

    graftwerk run dst_mlp_cifar10 --jobs 4            # 550 runs; data is found by CIFAR10_PYTORCH

`dst_NETWORK_DATASET` are the main grids (11 densities × 5 criteria × random and gradient growth ×
seeds), `static_…` their fixed masks, `dense_…` the networks without masks; `dst_variants.py` and
`dst_imagenet.py` hold the others. Any key reaches all runs: `epochs=5`. Results were published as
curves: criteria about tie at high density, magnitude leads at the lowest, DST is above static
masks. Every family validates on a tenth of its training images and leaves the test images alone
(`graftwerk evaluate RUN data.holdout=0` scores them, of Higgs `data.test=true`), where the paper
took the test images for CIFAR-100 and Tiny-ImageNet. None of these grids has been trained with
graftwerk yet. One run of the MLP or the conv net
is 35,200 steps of 128 images; the paper is 9,728 runs in 42 families, 15 of which it did twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from graftwerk.data.config import (
    CIFAR10_MEAN,
    Augment,
    Cifar10,
    Cifar100,
    Data,
    FashionMnist,
    Higgs,
    TinyImageNet,
)
from graftwerk.grid import grid
from graftwerk.models.config import Model
from graftwerk.optim.config import Optim, Steps
from graftwerk.pipeline import Pipeline
from graftwerk.recipes import recipe
from graftwerk.run import BatchSize, Evaluate, Run

SEEDS = range(1, 6)
DENSITIES = (0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
CRITERIA = ("magnitude", "set", "snip", "mest", "reciprocal_sensitivity")
GROWTH = ("random", "gradient")
CIFAR10_STD = (0.2023, 0.1994, 0.2010)
REFLECT = Augment(size=32, crop="pad", padding=4, padding_mode="reflect")
ZERO = Augment(size=32, crop="pad", padding=4)


def base(
    name: str,
    model: str,
    data: Data,
    augment: Augment,
    *,
    epochs: int = 100,
    lr: float = 0.01,
    decay: float = 5e-4,
    batch: int = 128,
) -> Run:
    """SGD with Nesterov momentum 0.9, rate ×0.1 at half and three quarters."""
    return Run(
        name=name,
        epochs=epochs,
        model=Model(name=model),
        data=data,
        augment=augment,
        evaluate=Evaluate(crop=1.0, batch=100),
        batch=BatchSize(size=batch),
        optim=Optim(name="sgd", lr=lr, momentum=0.9, weight_decay=decay),
        schedule=Steps(milestones=(0.5, 0.75), factor=0.1),
    )


def mlp(name: str = "mlp_cifar10") -> Run:
    return base(name, "mlp_cifar10", cifar10(), REFLECT)


def conv(name: str = "conv_cifar10") -> Run:
    return base(name, "conv_cifar10", cifar10(), REFLECT)


def lenet(name: str = "lenet_fashion") -> Run:
    data = FashionMnist(mean=(0.5,), std=(0.5,), holdout=0.1)
    return base(name, "lenet5_caffe", data, Augment(size=28, crop="none", hflip=0.0))


def resnet(name: str = "resnet56_cifar10") -> Run:
    return base(name, "cifar_resnet_56", cifar10(), REFLECT, epochs=200, lr=0.1, decay=1e-4)


def resnet100(name: str = "resnet56_cifar100") -> Run:
    return base(name, "cifar_resnet_56", cifar100(), ZERO, epochs=200, lr=0.1, decay=1e-4)


def vgg(name: str = "vgg16_cifar100") -> Run:
    return base(name, "vgg16_cifar", cifar100(), ZERO, epochs=200, decay=1e-4)


def lenet_1024(name: str = "lenet_fashion_1024") -> Run:
    return lenet(name).model_copy(update={"batch": BatchSize(size=1024)})


def higgs(name: str = "mlp_higgs") -> Run:
    return base(name, "mlp_higgs", Higgs(), Augment(size=1, crop="none", hflip=0.0))


def efficientnet(name: str = "efficientnet_tiny_imagenet") -> Run:
    run = base(
        name,
        "efficientnet_b0",
        TinyImageNet(holdout=0.1),
        Augment(size=64, crop="none"),
        decay=1e-3,
    )
    return run.model_copy(update={"optim": run.optim.model_copy(update={"name": "momentum"})})


def cifar10() -> Data:
    return Cifar10(mean=CIFAR10_MEAN, std=CIFAR10_STD, holdout=0.1)


def cifar100() -> Data:
    return Cifar100(holdout=0.1)


BASES = {
    "mlp_cifar10": mlp,
    "conv_cifar10": conv,
    "lenet_fashion": lenet,
    "resnet56_cifar10": resnet,
    "resnet56_cifar100": resnet100,
    "vgg16_cifar100": vgg,
    "mlp_higgs": higgs,
    "efficientnet_tiny_imagenet": efficientnet,
    "lenet_fashion_1024": lenet_1024,
}
OFTEN = ("efficientnet_tiny_imagenet", "lenet_fashion_1024")
"""Masks are updated every 100 steps instead of every 800."""
SCALED = ("conv_cifar10", "mlp_higgs", "resnet56_cifar10")
"""Static masks with and without first weights that are scaled to them."""


def sparse(run: Run, kind: str, seeds: Sequence[int] = SEEDS, **keys: Any) -> Pipeline:
    """A grid over keys of the sparsity axis and the seed; values that are no tuples are fixed."""
    axes: dict[str, Sequence[Any]] = {"sparsity": (kind,)}
    if kind == "dst":
        axes["sparsity.every"] = (800,)
    for key, value in keys.items():
        axes[f"sparsity.{key}"] = value if isinstance(value, tuple) else (value,)
    return grid(run, {**axes, "seed": seeds})


def static(name: str) -> Pipeline:
    run, three = BASES[name](f"static_{name}"), name == "resnet56_cifar100"
    keys: dict[str, Any] = {"density": DENSITIES}
    if name in SCALED:
        keys["scale_init"] = (False, True)
    return sparse(run, "static", SEEDS[:3] if three else SEEDS, **keys)


def dynamic(name: str) -> Pipeline:
    run, three = BASES[name](f"dst_{name}"), name == "lenet_fashion_1024"
    keys: dict[str, Any] = {"density": DENSITIES, "prune": CRITERIA, "grow": GROWTH}
    if name in OFTEN:
        keys["every"] = 100
    return sparse(run, "dst", SEEDS[:3] if three else SEEDS, **keys)


def ship(name: str, about: str, make: Callable[[], Pipeline]) -> None:
    """A recipe that is one of many alike."""

    def shipped() -> Pipeline:
        return make()

    shipped.__name__, shipped.__doc__ = name, about
    recipe(shipped)


for _name, _base in BASES.items():
    ship(
        f"dense_{_name}",
        f"Five seeds of the dense network, the yardstick of dst_{_name}.",
        lambda b=_base, n=_name: grid(b(f"dense_{n}"), {"seed": SEEDS}),
    )
    ship(
        f"static_{_name}",
        "Fixed random masks at eleven densities.",
        lambda n=_name: static(n),
    )
    ship(
        f"dst_{_name}",
        "The main grid: 11 densities × 5 criteria × 2 growths × seeds.",
        lambda n=_name: dynamic(n),
    )
