"""Deep Incubation against end-to-end training on CIFAR-10 (`train/<class>/*`, `test/<class>/*`).

    graftwerk run incubate_cifar10_vit data.path=/path/to/cifar10 seed=0
    graftwerk run end_to_end_cifar10_vit data.path=/path/to/cifar10 seed=0
    graftwerk report incubate_cifar10_vit data.path=/path/to/cifar10 seed=0

and the same with `resnet` in the place of `vit`. `end_to_end_…` trains the same network from
scratch: `same_epochs` for as many epochs as any part of the incubated one was trained (a module's
and those of the fine-tuning), `same_time` for as long as all phases together cost, where a block's
forward pass counts 1 and each of its two gradients 1 (`incubation.costs`). A fifth of the training
images is used, so that a seed's comparison takes minutes on one CPU core (``data.workers=0``; bf16
helps the ResNet, not so small a ViT). The test images are scored once, after the last step of each
run.
"""

from __future__ import annotations

from pathlib import Path

from graftwerk.config import override
from graftwerk.data.config import CIFAR10_MEAN, CIFAR10_STD, Augment, Folder
from graftwerk.incubation import Incubation, Phases, Plan, equal_epochs, incubate
from graftwerk.models.config import Model
from graftwerk.objectives.config import Supervised
from graftwerk.optim.config import Cosine, Optim
from graftwerk.pipeline import Pipeline
from graftwerk.recipes import recipe
from graftwerk.run import BatchSize, Evaluate, Run, Save

META, MODULE, FINETUNE = 3, 3, 4
"""Epochs."""
VIT = Model(
    name="vit_tiny_patch16_224",
    depths=(8,),
    args={"patch_size": 8, "embed_dim": 64, "num_heads": 4},
)
RESNET = Model(name="resnet34", depths=(3, 4, 6, 3), args={"channels": [16, 32, 64, 128]})
IN_VIT = Plan(divide=(2, 2, 2, 2), meta=(1, 1, 1, 1))
IN_RESNET = Plan(divide=(3, 4, 6, 3), meta=(1, 1, 1, 1))


def network(name: str, model: Model, optim: Optim) -> Run:
    return Run(
        name=name,
        objective=Supervised(smoothing=0.1),
        model=model,
        data=Folder(path=Path("cifar10"), mean=CIFAR10_MEAN, std=CIFAR10_STD, fraction=0.2),
        augment=Augment(size=32, crop="pad", padding=4),
        evaluate=Evaluate(every=1000, crop=1.0, batch=500),
        batch=BatchSize(size=64),
        optim=optim,
        schedule=Cosine(warmup_epochs=0.5, end=0.01),
        save=Save(every="1 epoch", keep=1),
    )


def incubated(whole: Run, plan: Plan, finetune_lr: float) -> Incubation:
    phases = Phases(
        meta={"epochs": META},
        module={"epochs": MODULE},
        finetune={"epochs": FINETUNE, "optim.lr": finetune_lr},
    )
    return Incubation.planned(plan, lambda plan: incubate(whole, plan, phases))


def end_to_end(whole: Run, plan: Plan) -> Pipeline:
    epochs = {
        "same_epochs": MODULE + FINETUNE,
        "same_time": equal_epochs(plan, meta=META, module=MODULE, finetune=FINETUNE),
    }
    return Pipeline(
        {
            name: override(Run, whole, {"name": f"{whole.name}_{name}", "epochs": number})
            for name, number in epochs.items()
        }
    )


ADAMW = Optim(name="adamw", lr=1e-3, weight_decay=0.05, clip=1.0)
SGD = Optim(name="sgd", lr=0.05, weight_decay=5e-4)


@recipe
def incubate_cifar10_vit() -> Incubation:
    """Modular training of a small ViT on a fifth of CIFAR-10."""
    return incubated(network("incubate_cifar10_vit", VIT, ADAMW), IN_VIT, finetune_lr=5e-4)


@recipe
def end_to_end_cifar10_vit() -> Pipeline:
    """The small ViT from scratch: for the epochs, and for the time, of `incubate_cifar10_vit`."""
    return end_to_end(network("end_to_end_cifar10_vit", VIT, ADAMW), IN_VIT)


@recipe
def incubate_cifar10_resnet() -> Incubation:
    """Modular training of a narrow ResNet-34 on a fifth of CIFAR-10."""
    return incubated(network("incubate_cifar10_resnet", RESNET, SGD), IN_RESNET, finetune_lr=0.02)


@recipe
def end_to_end_cifar10_resnet() -> Pipeline:
    """The ResNet-34 from scratch: for the epochs, and for the time, of the incubated one."""
    return end_to_end(network("end_to_end_cifar10_resnet", RESNET, SGD), IN_RESNET)
