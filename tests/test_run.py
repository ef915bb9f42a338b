from __future__ import annotations

import subprocess
import sys

import pytest

from graftwerk import config
from graftwerk.config import override, parse_overrides
from graftwerk.errors import ConfigError
from graftwerk.optim.config import Optim
from graftwerk.pipeline import Pipeline
from graftwerk.recipes import shipped
from graftwerk.run import BatchSize, Run, accumulation, parse_interval, peak_lr


@pytest.mark.parametrize("name", shipped())
def test_every_recipe_reloads_equal(name: str) -> None:
    for run in Pipeline.of(shipped()[name]()).runs.values():
        assert config.load(Run, config.dump(run)) == run


@pytest.mark.parametrize(
    "key", ["log.every=7", "save=3min", "processes=2", "data.workers=3", "batch.micro=3"]
)
def test_folder_does_not_depend_on_how_a_run_is_executed(key: str) -> None:
    assert override(Run, Run(), parse_overrides([key])).folder == Run().folder


@pytest.mark.parametrize("key", ["seed=1", "optim.lr=1", "data=folder", "batch.size=3"])
def test_folder_depends_on_what_is_learned(key: str) -> None:
    other = override(Run, Run(), parse_overrides([key, *(["data.path=/x"] * ("data" in key))]))
    assert other.folder != Run().folder


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("10min", (10, "minute")),
        ("500 steps", (500, "step")),
        ("1 epoch", (1, "epoch")),
        ("0.5 epochs", (0.5, "epoch")),
    ],
)
def test_intervals(text: str, interval: tuple[float, str]) -> None:
    assert parse_interval(override(Run, Run(), {"save.every": text}).save.every) == interval


@pytest.mark.parametrize("text", ["ten", "0 steps", "1.5 steps", "5 hours", "-1 epoch"])
def test_impossible_intervals_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"save\.every: "):
        override(Run, Run(), {"save.every": text})


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("micro", [None, 4, 16])
def test_micro_batches_make_up_the_batch(world: int, micro: int | None) -> None:
    size, count = accumulation(BatchSize(size=64, micro=micro), world)
    assert size * count * world == 64
    assert micro is None or size == micro


@pytest.mark.parametrize(
    ("batch", "world", "key"),
    [
        (BatchSize(size=64), 3, "batch.size"),
        (BatchSize(size=1), 2, "batch.size"),
        (BatchSize(size=64, micro=5), 2, "batch.micro"),
        (BatchSize(size=64, micro=128), 1, "batch.micro"),
    ],
)
def test_batches_that_do_not_divide_are_refused(batch: BatchSize, world: int, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        accumulation(batch, world)


def test_rate_scales_with_the_batch_only_where_asked() -> None:
    batch = BatchSize(size=1024)
    assert peak_lr(Run(batch=batch, optim=Optim(lr=0.1))) == 0.1
    assert peak_lr(Run(batch=batch, optim=Optim(lr=0.1, lr_per=256))) == pytest.approx(0.4)


def test_config_needs_no_torch() -> None:
    code = (
        "import sys, graftwerk.recipes; graftwerk.recipes.shipped(); print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
