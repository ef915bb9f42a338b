"""The recipes against the commands that the authors published, flag by flag."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftwerk.parts import plan
from graftwerk.recipes import find
from running import train_here

IN1K, IN22K = 1_281_167, 14_197_122
PUBLISHED = """
convnext_tiny_in1k                 4x8 128 drop .1  ema
convnext_small_in1k                4x8 128 drop .4  ema
convnext_base_in1k                 4x8 128 drop .5  ema
convnext_large_in1k                8x8  64 drop .5  ema
convnext_base_in1k_384             2x8  32 drop .8  ld .7 size 384
convnext_large_in1k_384            2x8  32 drop .95 ld .7 size 384
convnext_base_in21k               16x8  32 drop .1
convnext_large_in21k              16x8  32 drop .1
convnext_xlarge_in21k             16x8  32 drop .2
convnext_base_in21k_ft_in1k        2x8  32 drop .2  ld .8
convnext_large_in21k_ft_in1k       2x8  32 drop .3  ld .8
convnext_xlarge_in21k_ft_in1k      4x8  16 drop .4  ld .8 ema
convnext_base_in21k_ft_in1k_384    4x8  16 drop .2  ld .8 size 384
convnext_large_in21k_ft_in1k_384   4x8  16 drop .3  ld .8 size 384
convnext_xlarge_in21k_ft_in1k_384  8x8   8 drop .4  ld .8 size 384 ema
"""
ROWS = [line.split(maxsplit=3) for line in PUBLISHED.strip().splitlines()]


@pytest.mark.parametrize(("name", "gpus", "batch", "flags"), ROWS, ids=[row[0] for row in ROWS])
def test_published_commands(name: str, gpus: str, batch: str, flags: str) -> None:
    run, said = find(name), dict(zip(flags.split(), [*flags.split()[1:], ""], strict=True))
    nodes, per_node = map(int, gpus.split("x"))
    found = plan(run, IN22K if name.endswith("21k") else IN1K, nodes * per_node)
    assert found.micro == int(batch)
    assert found.accumulate == 1
    assert run.model.name == "_".join(name.split("_")[:2])
    assert run.model.drop_path == float(said["drop"])
    assert run.ema.decay == (0.9999 if "ema" in said else None)
    assert run.optim.layer_decay == float(said.get("ld", 1))
    assert run.augment.size == int(said.get("size", 224))
    assert (run.augment.mixup, run.augment.cutmix) == ((0, 0) if "ld" in said else (0.8, 1.0))
    assert run.model.head_init_scale == (0.001 if "ld" in said else 1)
    assert run.epochs == (30 if "ld" in said else 90 if "21k" in name else 300)
    assert found.peak_lr == (5e-5 if "ld" in said else 4e-3)
    assert run.optim.weight_decay == (1e-8 if "ld" in said else 0.05)
    assert run.optim.lr_per is None


def test_steps_of_the_published_training() -> None:
    found = plan(find("convnext_large_in1k"), IN1K, 64)
    assert (found.steps_per_epoch, found.total_steps) == (312, 93600)
    on_one_machine = plan(find("convnext_large_in1k"), IN1K, 8)
    assert on_one_machine.accumulate == 8


TINY = {
    "data": "digits",
    "steps": 2,
    "schedule__warmup_steps": 1,
    "evaluate__every": 1000,
    "batch__size": 16,
    "batch__micro": 8,
    "augment__size": 32,
    "model__args": {"depths": [1, 1, 2, 1], "dims": [8, 8, 16, 16]},
}


@pytest.mark.parametrize(
    "name", ["convnext_tiny_in1k", "convnext_large_in21k", "convnext_large_in21k_ft_in1k_384"]
)
def test_small_versions_train_on_a_cpu(name: str, tmp_path: Path) -> None:
    assert train_here(find(name), tmp_path, **TINY)["eval_loss"] > 0


def test_digits_learn_with_these_settings(tmp_path: Path) -> None:
    scores = train_here(find("convnext_digits"), tmp_path, epochs=3)
    assert scores["eval_top1"] > 0.2
