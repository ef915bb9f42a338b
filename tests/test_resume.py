"""Runs that are killed end with the bits of runs that are not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from running import (
    TINY,
    Forked,
    checkpoints,
    differences,
    newest_state,
    only_run,
    records,
    steps,
    until,
)

WITH_STATE_EVERYWHERE = ["sync=anchor", "sparsity=halving", "objective=decoded", "augment.mixup=0"]


def train(words: list[str], folder: Path) -> None:
    """To the end."""
    with begin(words, folder) as process:
        assert process.wait() == 0, said(folder)


def begin(words: list[str], folder: Path) -> Forked:
    ranks = 2 if "processes=2" in words else 1
    return Forked("run", TINY, *words, f"log.folder={folder}", out=out_of(folder), ranks=ranks)


def out_of(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.out"


def said(folder: Path) -> str:
    return out_of(folder).read_text()


def train_with_a_kill(words: list[str], folder: Path, rng: random.Random) -> None:
    """SIGKILL to the whole process tree at a random moment after its first checkpoint.

    Where the run is quicker than the kill, another one is killed.
    """
    for _ in range(20):
        with begin(words, folder) as process:
            until(lambda: checkpoints(folder) or process.poll() is not None)
            time.sleep(rng.uniform(0, 0.3))
            hit = process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        if hit:
            return train(words, folder)
        shutil.rmtree(folder)
    pytest.fail("no kill hit a running process")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="supervised"),
        pytest.param(WITH_STATE_EVERYWHERE, id="every-axis-with-state"),
        pytest.param(["processes=2", "batch.micro=16"], id="two-processes"),
        pytest.param(
            ["precision=fp16", "data.workers=1", "evaluate.every=1000"], id="fp16-loader-process"
        ),
        pytest.param(["processes=2", "sync=gossip", "sync.payload=int8"], id="gossip"),
    ],
)
def test_killed_run_ends_bit_identical(tmp_path: Path, words: list[str]) -> None:
    words = [*words, "log.every=1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(words, whole)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    train_with_a_kill(words, killed, random.Random(seed))
    one, other = only_run(whole), only_run(killed)
    step, state = newest_state(one)
    assert step == 10
    state["parts"]["optimizer"].pop("names", None)
    again, resumed = newest_state(other)
    assert again == step
    state["observer"].pop("run_id")
    resumed["observer"].pop("run_id")
    assert differences(state, resumed) == []
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    losses = [{r["step"]: r["loss"] for r in records(folder, "train")} for folder in (one, other)]
    assert losses[0] == losses[1]
    replicas = [r for r in records(one, "event") if r["event"] == "replicas"]
    assert bool(replicas) == ("sync=gossip" in words)
    assert all(r["bytes_sent"] > 0 and r["consensus_distance"] > 0 for r in replicas)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75)]
)
def test_signal_saves_at_the_next_step_and_says_again(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "runs"
    words = ["steps=1000", "save=1000 epochs", "evaluate.every=1000", "log.every=1"]
    with begin(words, folder) as process:
        until(lambda: steps(folder), process, lambda: said(folder))
        process.send_signal(number)
        assert process.wait() == code, said(folder)
    step, _ = newest_state(only_run(folder))
    (stopped,) = (r for r in records(only_run(folder), "event") if r["event"] == "stopped")
    assert stopped["step"] == step
    assert f"stopped by {number.name} after step {step}" in said(folder)


def test_signal_stops_all_ranks_at_the_same_step(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    words = ["steps=1000", "save=1000 epochs", "processes=2", "sync=anchor", "log.every=1"]
    with begin([*words, "evaluate.every=1000"], folder) as process:
        until(lambda: steps(folder), process, lambda: said(folder))
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75, said(folder)
    run = only_run(folder)
    mixed = {newest_state(run, rank)[1]["parts"]["sync"]["mixed"] for rank in (0, 1)}
    assert mixed == {newest_state(run)[0]}


@pytest.mark.parametrize(("ranks", "sync"), [(1, "allreduce"), (2, "allreduce"), (2, "gossip")])
def test_a_signal_in_an_evaluation_is_obeyed_and_the_evaluation_made_up(
    tmp_path: Path, ranks: int, sync: str
) -> None:
    """Twice: in the evaluation after step 6 (the last rank's), and where that is made up."""
    words = ["steps=8", "save=4 steps", "evaluate.every=0.25", f"processes={ranks}", "log.every=1"]
    words += ["data.workers=0", "evaluate.batch=4", "objective=interrupted", f"sync={sync}"]
    words += [f"objective.rank={ranks - 1}", f"objective.log={tmp_path / 'log'}"]
    (tmp_path / "log").touch()
    train([*words, "objective.times=0"], tmp_path / "whole")
    rows: list[int] = []
    for code in (75, 75, 0):
        with begin([*words, "objective.times=2"], tmp_path / "runs") as process:
            assert process.wait() == code, said(tmp_path / "runs")
        folder = only_run(tmp_path / "runs")
        table = folder / "metrics.csv"
        rows.append(len(table.read_text().splitlines()) if table.exists() else 0)
        if code:
            step, state = newest_state(folder)
            assert step < 8
            assert state["observer"]["unscored"] is not None
    assert rows[0] == rows[1] < rows[2]
    whole = only_run(tmp_path / "whole")
    assert (whole / "metrics.csv").read_text() == (folder / "metrics.csv").read_text()
    ends = [newest_state(run)[1] for run in (whole, folder)]
    for end in ends:
        end["observer"].pop("run_id")
    for name in ("observer", "parts", "order"):
        assert differences(ends[0][name], ends[1][name]) == []


def test_finished_run_says_so_and_never_keeps_the_old_one(tmp_path: Path) -> None:
    words, runs = ["steps=2", "evaluate.every=1000"], tmp_path / "runs"
    train(words, runs)
    folder = only_run(runs)
    before = (folder / "log.jsonl").read_bytes()
    train(words, runs)
    assert f"{folder} is finished" in said(runs)
    assert (folder / "log.jsonl").read_bytes() == before
    train([*words, "resume=never"], runs)
    assert (tmp_path / "runs" / f"{folder.name}.old1" / "log.jsonl").read_bytes() == before


def test_damaged_newest_checkpoint_is_named_and_the_one_before_used(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with begin(["log.every=1"], runs) as process:
        until(lambda: len(checkpoints(runs)) > 1, process, lambda: said(runs))
        process.send_signal(signal.SIGKILL)
        process.wait()
    folder = only_run(runs)
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    os.truncate(newest / "rank0.pt", 1000)
    train(["log.every=1"], runs)
    (event,) = (r for r in records(folder, "event") if r["event"] == "checkpoint_rejected")
    assert newest.name in event["reason"]
    assert newest.name in said(runs)
