"""Micro-batches that fit a limited memory, in processes that have one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from doubles import Greedy, Halving, tiny
from graftwerk.amendments import Amendments, Micro, read
from graftwerk.axes import World
from graftwerk.errors import ConfigError
from graftwerk.fitting import fit, fits
from graftwerk.memory import candidates, largest, ran_out
from graftwerk.run import BatchSize
from graftwerk.seeding import random_state
from running import (
    TINY,
    Forked,
    checkpoints,
    configured,
    differences,
    newest_state,
    only_run,
    records,
    until,
)

KEYS = [
    "objective=greedy",
    "objective.megabytes=400",
    "objective.allowed=4000",
    "batch.micro=null",
    "augment.mixup=0",
    "steps=6",
    "save=2 steps",
    "log.every=1",
    "evaluate.every=1000",
    "evaluate.batch=8",
    "data.workers=0",
    "log.tensorboard=false",
]


def start(folder: Path, *words: str) -> tuple[int, str]:
    out, words = folder.parent / "out", ("run", TINY, *KEYS, *words, f"log.folder={folder}")
    with Forked(*words, out=out, ranks=2 if "processes=2" in words else 1) as process:
        return process.wait(), out.read_text()


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [r for r in records(run, "event") if r["event"] == name]


def test_fit_finds_the_largest_divisor_and_remembers_it(tmp_path: Path) -> None:
    """At 400 MB an image and 4000 MB in all, 12 images would not fit and 8 do, of 48."""
    code, said = start(tmp_path / "runs", "batch.size=48", "batch.fit=true")
    assert code == 0, said
    assert "batch.fit: 48 = 1 process × 6 micro-batches × 8 images" in said
    run = only_run(tmp_path / "runs")
    assert read(run).micro == Micro(8, "cpu", 1, 48)
    assert not events(run, "out_of_memory")
    (fitted,) = events(run, "batch_fit")
    assert fitted["micro"] == 8
    assert fitted["reason"].endswith("8 images fits the memory of cpu")
    assert events(run, "started")[0]["batch"].endswith("8 images")


def test_out_of_memory_in_mid_run_goes_on_with_less(tmp_path: Path) -> None:
    """In step 4 a greedy image comes: 16 × 400 MB don't fit, 8 × 400 MB do."""
    (image, *_) = tiny().build(World()).plan.order.batch(3)[:, 1].tolist()
    words = ["batch.micro=16", f"objective.images=[{image}]"]
    code, said = start(tmp_path / "runs", *words)
    assert code == 0, said
    run = only_run(tmp_path / "runs")
    (event,) = events(run, "out_of_memory")
    assert (event["step"], event["rank"], event["micro"]) == (4, 0, 8)
    assert "out of memory in step 4, with micro-batches of 16 images" in said
    (resumed,) = events(run, "resumed")
    assert resumed["step"] == 2
    assert resumed["batch"] == "64 = 1 process × 8 micro-batches × 8 images"
    assert newest_state(run)[0] == 6


def test_a_rank_out_of_memory_ends_them_all_and_the_next_start_takes_less(tmp_path: Path) -> None:
    order = tiny().build(World()).plan.order
    image = order.share(3, 1, 2, 16)[0][0][1]
    words = ["processes=2", "batch.micro=16", f"objective.images=[{image}]"]
    code, said = start(tmp_path / "runs", *words)
    assert code == 75, said
    assert "those of the next start have 8; start again" in said
    code, said = start(tmp_path / "runs", *words)
    assert code == 0, said
    run = only_run(tmp_path / "runs")
    assert [event["rank"] for event in events(run, "out_of_memory")] == [1]
    assert events(run, "resumed")[0]["batch"] == "64 = 2 processes × 4 micro-batches × 8 images"


def test_nothing_fits(tmp_path: Path) -> None:
    keys = {"batch__fit": True, "batch__size": 4, "augment__mixup": 0}
    run = configured(tiny().model_copy(update={"objective": Greedy(megabytes=1 << 32)}), tmp_path)
    run = configured(run, tmp_path, batch__micro=None, **keys)
    with pytest.raises(ConfigError, match=r"batch.fit: not even a micro-batch of 1 fits"):
        fit(run, World())


@pytest.mark.parametrize("sparsity", [None, Halving()])
def test_trying_leaves_no_trace(tmp_path: Path, sparsity: Halving | None) -> None:
    run = configured(tiny(), tmp_path)
    if sparsity is not None:
        run = run.model_copy(update={"sparsity": sparsity})
    torch.manual_seed(random.randrange(2**32))
    before, mode = random_state(), torch.is_grad_enabled()
    assert fits(run, World(), 8)
    assert differences(before, random_state()) == []
    assert torch.is_grad_enabled() is mode
    assert list(tmp_path.iterdir()) == []


def test_errors_of_a_real_step_are_not_taken_for_want_of_memory(tmp_path: Path) -> None:
    run = configured(tiny(), tmp_path, augment__mixup=0).model_copy(
        update={"objective": Greedy(megabytes=-1)}
    )
    with pytest.raises(RuntimeError, match="negative dimension"):
        fits(run, World(), 8)


def test_bisection_finds_the_largest_that_fits() -> None:
    for _ in range(200):
        sizes = sorted(random.sample(range(1, 1000), random.randint(1, 12)))
        limit, tried = random.randint(0, 1000), list[int]()

        def fits(size: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(size)
            return size <= limit

        expected = max((size for size in sizes if size <= limit), default=None)
        assert largest(sizes, fits) == expected, (sizes, limit)
        assert len(tried) == len(set(tried)) <= 1 + len(sizes).bit_length()


@pytest.mark.parametrize(
    ("batch", "processes", "mixup", "expected"),
    [
        (BatchSize(size=24), 1, 0, [1, 2, 3, 4, 6, 8, 12, 24]),
        (BatchSize(size=24), 2, 0, [1, 2, 3, 4, 6, 12]),
        (BatchSize(size=24, micro=6), 1, 0, [1, 2, 3, 4, 6]),
        (BatchSize(size=24), 1, 0.2, [2, 4, 6, 8, 12, 24]),
    ],
)
def test_all_divisors_are_candidates(
    tmp_path: Path, batch: BatchSize, processes: int, mixup: float, expected: list[int]
) -> None:
    run = configured(tiny(), tmp_path, augment__mixup=mixup)
    run = run.model_copy(update={"batch": batch})
    assert candidates(run, World(size=processes)) == expected


def test_words_for_memory_that_ran_out() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out(error.value)
    assert ran_out(MemoryError())
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not ran_out(RuntimeError("shapes cannot be multiplied"))
    assert not ran_out(ValueError("out of memory"))


def test_a_newcomer_takes_what_fits_it() -> None:
    known = Amendments(micro=Micro(8, "cpu", 4, 64))
    assert known.at_most(16, tiny(), World()) == 8
    assert known.at_most(4, tiny(), World()) == 4
    assert Amendments().at_most(16, tiny(), World()) == 16


def test_a_run_whose_loader_is_killed_says_so_and_can_go_on(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    words = ["run", TINY, "data.workers=1", "batch=16", "evaluate.every=1000", "save=2 steps"]
    words += ["log.every=1", f"log.folder={tmp_path / 'runs'}", "steps=20", "objective=unhurried"]
    with Forked(*words, out=out) as process:
        until(lambda: checkpoints(tmp_path / "runs"), process, out.read_text)
        children = psutil.Process(process.ranks[0].pid).children()
        (loader,) = [c for c in children if "resource_tracker" not in " ".join(c.cmdline())]
        loader.kill()
        assert process.wait() == 75, out.read_text()
    assert str(loader.pid) in out.read_text()
    assert "data.workers=N" in out.read_text()
    assert "Traceback" not in out.read_text()
    with Forked(*words, out=out) as process:
        assert process.wait() == 0, out.read_text()
