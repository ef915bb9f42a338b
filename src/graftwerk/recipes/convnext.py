"""ConvNeXt on ImageNet with the published settings (Liu et al., CVPR 2022, arXiv 2201.03545).

    graftwerk run convnext_large_in1k data.path=/path/to/imagenet
    graftwerk run convnext_large_in1k_384 data.path=/path/to/imagenet model.pretrained=RUN_OR_FILE

Published top-1, of which none has been trained with graftwerk yet: T 82.1, S 83.1, B 83.8, L 84.3;
B and L at 384 pixels 85.1 and 85.5; from ImageNet-22K at 224 and 384 pixels B 85.8 and 86.8, L 86.6
and 87.5, XL 87.0 and 87.8. Published batches are 32 GPUs × 128 images (T, S, B), 64 × 64 (L),
128 × 32 (ImageNet-22K) and 16 × 32 (fine-tuning); `batch.micro` is the last factor, and fewer GPUs
accumulate more micro-batches. ImageNet-22K has no validation images: a hundredth of each class is
held out here, which the original trains on.
"""

from __future__ import annotations

from pathlib import Path

from graftwerk.data.config import Augment, Digits, Folder
from graftwerk.models.config import Model
from graftwerk.objectives.config import Supervised
from graftwerk.optim.config import Cosine, Ema, Optim
from graftwerk.recipes import recipe
from graftwerk.run import BatchSize, Evaluate, Run

AUGMENT = Augment(policy="rand-m9-mstd0.5-inc1", erase=0.25)
SMOOTHING = Supervised(smoothing=0.1)
LR, FINE_TUNING_LR, LAST_LR = 4e-3, 5e-5, 1e-6


def training(
    name: str, *, model: str, drop_path: float, micro: int, epochs: int = 300, warmup: int = 20
) -> Run:
    """4,096 images a step, AdamW, mixup and CutMix; 300 epochs of which 20 warm up."""
    return Run(
        name=name,
        epochs=epochs,
        objective=SMOOTHING,
        model=Model(name=model, drop_path=drop_path),
        data=Folder(path=Path("imagenet")),
        augment=AUGMENT.model_copy(update={"mixup": 0.8, "cutmix": 1.0}),
        batch=BatchSize(size=4096, micro=micro),
        optim=Optim(name="adamw", lr=LR, weight_decay=0.05),
        schedule=Cosine(warmup_epochs=warmup, warmup_reaches_peak=True, end=LAST_LR / LR),
    )


def in1k(model: str, *, drop_path: float, micro: int = 128) -> Run:
    run = training(f"{model}_in1k", model=model, drop_path=drop_path, micro=micro)
    return run.model_copy(update={"ema": Ema(decay=0.9999)})


def in21k(model: str, *, drop_path: float = 0.1) -> Run:
    """21,841 classes in one folder; no average of the weights."""
    name = f"{model}_in21k"
    run = training(name, model=model, drop_path=drop_path, micro=32, epochs=90, warmup=5)
    return run.model_copy(update={"data": Folder(path=Path("imagenet22k"), holdout=0.01)})


def finetuning(
    name: str, *, model: str, size: int, drop_path: float, layer_decay: float, micro: int
) -> Run:
    """30 epochs of 512 images a step, without mixing, almost without weight decay."""
    return Run(
        name=name,
        epochs=30,
        objective=SMOOTHING,
        model=Model(name=model, drop_path=drop_path, head_init_scale=0.001),
        data=Folder(path=Path("imagenet")),
        augment=AUGMENT.model_copy(update={"size": size}),
        evaluate=Evaluate(crop=1.0, crop_mode="squash") if size >= 384 else Evaluate(crop=0.875),
        batch=BatchSize(size=512, micro=micro),
        optim=Optim(
            name="adamw",
            lr=FINE_TUNING_LR,
            weight_decay=1e-8,
            layer_decay=layer_decay,
            layer_groups="convnext",
        ),
        schedule=Cosine(end=LAST_LR / FINE_TUNING_LR),
    )


def from_in1k(model: str, *, drop_path: float) -> Run:
    return finetuning(
        f"{model}_in1k_384",
        model=model,
        size=384,
        drop_path=drop_path,
        layer_decay=0.7,
        micro=32,
    )


def from_in21k(model: str, *, drop_path: float, size: int, micro: int) -> Run:
    return finetuning(
        f"{model}_in21k_ft_in1k" + ("" if size == 224 else f"_{size}"),
        model=model,
        size=size,
        drop_path=drop_path,
        layer_decay=0.8,
        micro=micro,
    )


def averaged(run: Run) -> Run:
    return run.model_copy(update={"ema": Ema(decay=0.9999)})


@recipe
def convnext_tiny_in1k() -> Run:
    """ConvNeXt-T on ImageNet-1K; published 82.1 %."""
    return in1k("convnext_tiny", drop_path=0.1)


@recipe
def convnext_small_in1k() -> Run:
    """ConvNeXt-S on ImageNet-1K; published 83.1 %."""
    return in1k("convnext_small", drop_path=0.4)


@recipe
def convnext_base_in1k() -> Run:
    """ConvNeXt-B on ImageNet-1K; published 83.8 %."""
    return in1k("convnext_base", drop_path=0.5)


@recipe
def convnext_large_in1k() -> Run:
    """ConvNeXt-L on ImageNet-1K; published 84.3 %."""
    return in1k("convnext_large", drop_path=0.5, micro=64)


@recipe
def convnext_base_in1k_384() -> Run:
    """ConvNeXt-B of ImageNet-1K, fine-tuned at 384 pixels; published 85.1 %."""
    return from_in1k("convnext_base", drop_path=0.8)


@recipe
def convnext_large_in1k_384() -> Run:
    """ConvNeXt-L of ImageNet-1K, fine-tuned at 384 pixels; published 85.5 %."""
    return from_in1k("convnext_large", drop_path=0.95)


@recipe
def convnext_base_in21k() -> Run:
    """ConvNeXt-B on ImageNet-22K."""
    return in21k("convnext_base")


@recipe
def convnext_large_in21k() -> Run:
    """ConvNeXt-L on ImageNet-22K."""
    return in21k("convnext_large")


@recipe
def convnext_xlarge_in21k() -> Run:
    """ConvNeXt-XL on ImageNet-22K."""
    return in21k("convnext_xlarge", drop_path=0.2)


@recipe
def convnext_base_in21k_ft_in1k() -> Run:
    """ConvNeXt-B of ImageNet-22K, fine-tuned on ImageNet-1K; published 85.8 %."""
    return from_in21k("convnext_base", drop_path=0.2, size=224, micro=32)


@recipe
def convnext_large_in21k_ft_in1k() -> Run:
    """ConvNeXt-L of ImageNet-22K, fine-tuned on ImageNet-1K; published 86.6 %."""
    return from_in21k("convnext_large", drop_path=0.3, size=224, micro=32)


@recipe
def convnext_xlarge_in21k_ft_in1k() -> Run:
    """ConvNeXt-XL of ImageNet-22K, fine-tuned on ImageNet-1K; published 87.0 %."""
    return averaged(from_in21k("convnext_xlarge", drop_path=0.4, size=224, micro=16))


@recipe
def convnext_base_in21k_ft_in1k_384() -> Run:
    """ConvNeXt-B of ImageNet-22K, fine-tuned at 384 pixels; published 86.8 %."""
    return from_in21k("convnext_base", drop_path=0.2, size=384, micro=16)


@recipe
def convnext_large_in21k_ft_in1k_384() -> Run:
    """ConvNeXt-L of ImageNet-22K, fine-tuned at 384 pixels; published 87.5 %."""
    return from_in21k("convnext_large", drop_path=0.3, size=384, micro=16)


@recipe
def convnext_xlarge_in21k_ft_in1k_384() -> Run:
    """ConvNeXt-XL of ImageNet-22K, fine-tuned at 384 pixels; published 87.8 %."""
    return averaged(from_in21k("convnext_xlarge", drop_path=0.4, size=384, micro=8))


@recipe
def convnext_digits() -> Run:
    """The settings of ConvNeXt's training on digits, with a thin network; a minute on a CPU."""
    run = in1k("convnext_atto", drop_path=0.1)
    return run.model_copy(
        update={
            "name": "convnext_digits",
            "epochs": 10,
            "data": Digits(),
            "model": Model(
                name="convnext_atto",
                drop_path=0.1,
                args={"depths": [1, 1, 3, 1], "dims": [16, 32, 64, 128], "patch_size": 2},
            ),
            "augment": run.augment.model_copy(update={"size": 32, "hflip": 0.0}),
            "batch": BatchSize(size=64, micro=32),
            "schedule": run.schedule.model_copy(update={"warmup_epochs": 1}),
            "ema": Ema(decay=0.99),
        }
    )
