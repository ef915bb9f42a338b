"""A run that goes on with other numbers of ranks and other micro-batches."""

from __future__ import annotations

import contextlib
import os
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from doubles import tiny
from graftwerk.axes import World
from graftwerk.data.order import Order
from graftwerk.launch.local import environment
from graftwerk.meter import Meter
from graftwerk.ports import free_port
from graftwerk.run import Run
from graftwerk.samples import fingerprint
from graftwerk.signals import StoppedError
from graftwerk.start import start
from running import (
    configured,
    fork_server,
    newest_state,
    only_run,
    records,
    steps,
    train_here,
    until,
)

IMAGES, BATCH = 359, 64
KEYS = {
    "steps": 1000,
    "data__holdout": 0.8,
    "save": "1000 epochs",
    "evaluate__every": 1000,
    "log__every": 1,
}


def rank(run: Run, number: int, env: dict[str, str]) -> None:
    os.environ |= env | {"RANK": str(number), "LOCAL_RANK": str(number), "OMP_NUM_THREADS": "1"}
    with contextlib.suppress(StoppedError):
        start(run)


def train_until(step: int, folder: Path, *, ranks: int, **keys: Any) -> None:
    """Go on as so many real processes, until after `step` a scheduler's signal stops them."""
    run, env = configured(tiny(), folder, **KEYS, **keys), environment(ranks, free_port())
    processes: list[BaseProcess] = [
        fork_server().Process(target=rank, args=(run, number, env)) for number in range(ranks)
    ]
    for process in processes:
        process.start()

    def reached() -> bool:
        assert all(process.exitcode is None for process in processes)
        return max(steps(folder), default=0) >= step

    try:
        until(reached)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * ranks
    finally:
        for process in processes:
            process.kill()


def expected(steps: int) -> str:
    """Of a run whose every epoch visits each image once, in the order of its seed."""
    order = Order(IMAGES, BATCH, seed=0)
    total = sum(fingerprint(step, order.batch(step)[:, 1]) for step in range(steps))
    return f"{total % 2**64:016x}"


def why(folder: Path) -> list[str]:
    events = (event for event in records(only_run(folder), "event"))
    return [event["reason"] for event in events if event["event"] == "resumed_elastically"]


def test_no_image_is_lost_or_repeated_by_one_two_four_and_one_ranks(tmp_path: Path) -> None:
    step = 0
    for ranks in (1, 2, 4, 1):
        train_until(step + 2, tmp_path, ranks=ranks)
        step, state = newest_state(only_run(tmp_path))
        assert state["observer"]["samples"] == expected(step)
        assert len(state["ranks"]) == ranks
    assert step > IMAGES // BATCH
    assert [reason.partition(":")[0] for reason in why(tmp_path)] == [
        "resumed on 2 ranks, was 1",
        "resumed on 4 ranks, was 2",
        "resumed on 1 rank, was 4",
    ]


def test_another_micro_batch_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    step, state = 0, dict[str, Any]()
    for keys in ({}, {"batch__micro": 32}, {"batch__micro": 32}):
        train_until(step + 2, tmp_path, ranks=1, **keys)
        step, state = newest_state(only_run(tmp_path))
    assert state["observer"]["samples"] == expected(step)
    (reason,) = why(tmp_path)
    assert reason.startswith("resumed with micro-batches of 32 images, was 16: the same images")
    assert "mixup meets other pairs" in reason


@pytest.mark.parametrize(
    ("sums", "ranks", "means"),
    [
        pytest.param([[6.0, 2.0], [3.0, 4.0]], 1, [1.5, 3.0], id="two-to-one"),
        pytest.param([[6.0, 2.0]], 2, [2.0, 2.0], id="one-to-two"),
        pytest.param([[6.0, 2.0], [3.0, 4.0]], 2, [1.0, 4.0], id="as-before"),
    ],
)
def test_losses_of_ranks_that_are_gone_stay_in_the_mean(
    sums: list[list[float]], ranks: int, means: list[float]
) -> None:
    meter = Meter(torch.device("cpu"))
    meter.load([{"sums": own, "counts": [3, 1]} for own in sums], World(rank=ranks - 1, size=ranks))
    assert [meter.take(World(), which) for which in (Meter.EVALUATION, Meter.RECORD)] == means


def test_a_job_that_was_queued_again_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = configured(tiny(), tmp_path, steps=1, evaluate__every=1000)
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    train_here(run, tmp_path)
    (event,) = (r for r in records(run.folder, "event") if r["event"] == "requeued")
    assert (event["step"], event["reason"]) == (0, "job 71 started 3 times")
