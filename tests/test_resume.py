"""Runs that are killed end with the bits of runs that are not."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from running import TINY, Forked, differences, newest_state, only_run, records

WITH_STATE_EVERYWHERE = ["sync=anchor", "sparsity=halving", "objective=decoded", "augment.mixup=0"]


def start(words: list[str], folder: Path) -> Forked:
    ranks = 2 if "processes=2" in words else 1
    out = folder.parent / f"{folder.name}.out"
    return Forked("run", TINY, *words, f"log.folder={folder}", out=out, ranks=ranks)


def wait_for_checkpoint(folder: Path, process: Forked, after: int = 0) -> None:
    """Until a checkpoint of more than `after` steps is there, or the run has ended."""
    while process.poll() is None:
        found = [int(path.name[5:]) for path in folder.glob("*/checkpoints/step-*")]
        if max(found, default=0) > after:
            return
        time.sleep(0.01)


def train_with_kills(words: list[str], folder: Path, *, kills: int, rng: random.Random) -> int:
    """SIGKILL to the whole process tree at random moments; how many of them hit a running one."""
    hits, reached = 0, 0
    for _ in range(kills):
        process = start(words, folder)
        wait_for_checkpoint(folder, process, after=reached)
        time.sleep(rng.uniform(0, 0.3))
        hits += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached = newest_state(only_run(folder))[0]
    last = start(words, folder)
    assert last.wait() == 0, (folder.parent / f"{folder.name}.out").read_text()
    return hits


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
    assert start(words, whole).wait() == 0, (tmp_path / "whole.out").read_text()
    seed = random.randrange(2**32)
    hits = train_with_kills(words, killed, kills=1, rng=random.Random(seed))
    assert hits, f"no kill hit a running process (seed {seed})"
    one, other = only_run(whole), only_run(killed)
    step, state = newest_state(one)
    assert step == 10
    state["parts"]["optimizer"].pop("names", None)
    again, resumed = newest_state(other)
    assert again == step
    state["observer"].pop("run_id")
    resumed["observer"].pop("run_id")
    assert differences(state, resumed) == [], f"seed {seed}"
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
    process = start(words, folder)
    while not list(folder.glob("*/log.jsonl")) or not records(only_run(folder), "train"):
        assert process.poll() is None, (tmp_path / "runs.out").read_text()
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == code
    step, _ = newest_state(only_run(folder))
    (stopped,) = (r for r in records(only_run(folder), "event") if r["event"] == "stopped")
    assert stopped["step"] == step
    assert f"stopped by {number.name} after step {step}" in (tmp_path / "runs.out").read_text()


def test_signal_stops_all_ranks_at_the_same_step(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    words = ["steps=1000", "save=1000 epochs", "processes=2", "sync=anchor", "log.every=1"]
    process = start([*words, "evaluate.every=1000"], folder)
    while not list(folder.glob("*/log.jsonl")) or not records(only_run(folder), "train"):
        assert process.poll() is None, (tmp_path / "runs.out").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    run = only_run(folder)
    steps = {newest_state(run, rank)[1]["parts"]["sync"]["mixed"] for rank in (0, 1)}
    assert steps == {newest_state(run)[0]}


def test_finished_run_says_so_and_never_keeps_the_old_one(tmp_path: Path) -> None:
    words, runs, out = ["steps=2", "evaluate.every=1000"], tmp_path / "runs", tmp_path / "runs.out"
    assert start(words, runs).wait() == 0, out.read_text()
    folder = only_run(runs)
    before = (folder / "log.jsonl").read_bytes()
    assert start(words, runs).wait() == 0, out.read_text()
    assert f"{folder} is finished" in out.read_text()
    assert (folder / "log.jsonl").read_bytes() == before
    assert start([*words, "resume=never"], runs).wait() == 0, out.read_text()
    assert (tmp_path / "runs" / f"{folder.name}.old1" / "log.jsonl").read_bytes() == before


def test_damaged_newest_checkpoint_is_named_and_the_one_before_used(tmp_path: Path) -> None:
    process = start(["log.every=1"], tmp_path / "runs")
    wait_for_checkpoint(tmp_path / "runs", process, after=3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = only_run(tmp_path / "runs")
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    os.truncate(newest / "rank0.pt", 1000)
    assert start(["log.every=1"], tmp_path / "runs").wait() == 0
    (event,) = (r for r in records(folder, "event") if r["event"] == "checkpoint_rejected")
    assert newest.name in event["reason"]
    assert newest.name in (tmp_path / "runs.out").read_text()
