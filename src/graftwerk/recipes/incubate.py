"""Deep Incubation (Ni et al., ICCV 2023, arXiv 2212.04129) on ImageNet-1K.

    graftwerk run incubate_vit_base data.path=/path/to/imagenet --jobs 4

`data.path` holds `train/<class>/*` and `val/<class>/*`. One command trains the meta network (300
epochs), the four modules (100 epochs each, at the same time where there are machines), assembles
them and fine-tunes the whole (100 epochs); ``incubate.divide=[4,4,4] incubate.meta=[1,1,1]`` is
another division. Published top-1 of ViT-B, L, H: 82.4, 83.9, 84.3 at 224 pixels, and 84.2, 85.3,
85.6 at 384 (H: 392), for 390, 890 and 2720 hours of an A100. None of it has been trained with
graftwerk yet.

The settings of the three ViTs at 224 pixels are the published ones; `optim.clip` works in their
fine-tuning, which the original asked for and ignored without AMP. The second fine-tuning (DeiT's)
and the recipes of ResNet-50 and ConvNeXt-T are ours: none was published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graftwerk.data.config import Augment, Folder
from graftwerk.incubation import Incubation, Phases, Plan, incubate
from graftwerk.models.config import Model
from graftwerk.objectives.config import Supervised
from graftwerk.optim.config import Cosine, Optim
from graftwerk.recipes import recipe
from graftwerk.run import BatchSize, Evaluate, Run

PEAK, FLOOR, START = 5e-4 * 2048 / 512, 1e-5, 1e-6
"""Learning rates: only the peak grows with the batch."""


def network(name: str, model: Model) -> Run:
    """The settings that all phases share."""
    return Run(
        name=name,
        epochs=100,
        objective=Supervised(smoothing=0.1),
        model=model,
        data=Folder(path=Path("imagenet")),
        augment=Augment(
            size=224, policy="rand-m9-mstd0.5-inc1", erase=0.25, mixup=0.8, cutmix=1.0, repeats=3
        ),
        evaluate=Evaluate(crop=0.875),
        batch=BatchSize(size=2048),
        optim=Optim(
            name="adamw", lr=5e-4, lr_per=512, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05
        ),
        schedule=Cosine(
            per="epoch",
            lag=1,
            warmup_epochs=20,
            warmup_start=START / PEAK,
            warmup_prefix=False,
            end=FLOOR / PEAK,
        ),
    )


def high_resolution(size: int) -> dict[str, Any]:
    """DeiT's fine-tuning at another resolution: a small constant rate and hardly any decay."""
    return {
        "augment.size": size,
        "evaluate.crop": 1.0,
        "epochs": 30,
        "optim.lr": 5e-6,
        "optim.weight_decay": 1e-8,
        "schedule": {"kind": "constant"},
    }


def vit(name: str, model: Model, *, drop_path: float, high: int) -> Incubation:
    """Four modules of a quarter of the depth, in a meta network of four blocks."""
    whole = network(name, model)
    phases = Phases(
        meta={"epochs": 300, "model.drop_path": 0.0},
        module={"model.drop_path": 0.1},
        finetune={"model.drop_path": drop_path, "optim.clip": 1.0, "schedule.warmup_epochs": 0},
        high={"model.drop_path": drop_path, **high_resolution(high)},
    )
    assert model.depths is not None
    quarter = model.depths[0] // 4
    plan = Plan(divide=(quarter,) * 4, meta=(1, 1, 1, 1))
    return Incubation.planned(plan, lambda plan: incubate(whole, plan, phases))


@recipe
def incubate_vit_base() -> Incubation:
    """Modular training of ViT-B/16 on ImageNet, then at 384 pixels."""
    model = Model(name="vit_base_patch16_224", depths=(12,))
    return vit("incubate_vit_base", model, drop_path=0.1, high=384)


@recipe
def incubate_vit_large() -> Incubation:
    """Modular training of ViT-L/16 on ImageNet, then at 384 pixels."""
    model = Model(name="vit_large_patch16_224", depths=(24,))
    return vit("incubate_vit_large", model, drop_path=0.5, high=384)


@recipe
def incubate_vit_huge() -> Incubation:
    """Modular training of ViT-H/14 without biases of queries on ImageNet, then at 392 pixels."""
    model = Model(
        name="vit_huge_patch14_224", depths=(32,), norm_eps=1e-5, args={"qkv_bias": False}
    )
    return vit("incubate_vit_huge", model, drop_path=0.6, high=392)


def staged(whole: Run, plan: Plan, *, drop_path: float) -> Incubation:
    """A module for each stage."""
    phases = Phases(
        meta={"epochs": 300, "model.drop_path": 0.0},
        module={"model.drop_path": drop_path},
        finetune={"model.drop_path": drop_path, "optim.clip": 1.0, "schedule.warmup_epochs": 0},
    )
    return Incubation.planned(plan, lambda plan: incubate(whole, plan, phases))


@recipe
def incubate_resnet50() -> Incubation:
    """Modular training of ResNet-50 on ImageNet, a module for each stage."""
    whole = network("incubate_resnet50", Model(name="resnet50", depths=(3, 4, 6, 3)))
    plan = Plan(divide=(3, 4, 6, 3), meta=(1, 1, 1, 1))
    return staged(whole, plan, drop_path=0.05)


@recipe
def incubate_convnext_tiny() -> Incubation:
    """Modular training of ConvNeXt-T on ImageNet, a module for each stage."""
    whole = network("incubate_convnext_tiny", Model(name="convnext_tiny", depths=(3, 3, 9, 3)))
    plan = Plan(divide=(3, 3, 9, 3), meta=(1, 1, 1, 1))
    return staged(whole, plan, drop_path=0.1)
