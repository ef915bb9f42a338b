"""A real run whose worker is killed while it trains."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints, read_tensors
from running import PATIENCE, TINY, command, only_run, records, started, steps, until

KEYS = [
    "sync=gossip",
    "sync.timeout=60",
    "objective=unhurried",
    "augment.mixup=0",
    "log.every=1",
    "save=1000 epochs",
    "evaluate.every=1000",
    "batch.size=8",
    "batch.micro=4",
    "data.workers=0",
    "log.console=quiet",
]


def workers(supervisor: int) -> dict[int, int]:
    """slot → process number, of those that run now."""
    found: dict[int, int] = {}
    for child in psutil.Process(supervisor).children():
        try:
            found[int(child.environ()["RANK"])] = child.pid
        except (psutil.Error, KeyError):
            continue
    return found


def members(folder: Path) -> list[str]:
    """The members after each change, in the words of the log."""
    return [r["workers"] for r in records(only_run(folder), "event") if r["event"] == "members"]


def test_a_killed_worker_is_replaced_and_the_run_ends(tmp_path: Path) -> None:
    """Rank 0, which writes the log: the other one goes on, and then both."""
    folder, out = tmp_path / "runs", tmp_path / "out"
    words = [TINY, *KEYS, "processes=2", "steps=100000", f"log.folder={folder}"]
    with out.open("wb") as log, started(command("run", *words), log) as process:
        until(lambda: len(steps(folder)) > 3, process, out.read_text)
        os.kill(workers(process.pid)[0], signal.SIGKILL)
        until(lambda: members(folder)[-2:] == ["1", "0 1"], process, out.read_text)
        reached = steps(folder)[-1]
        until(lambda: steps(folder)[-1] > reached + 3, process, out.read_text)
        process.terminate()
        assert process.wait(PATIENCE) == 75, out.read_text()
    entry = Checkpoints(only_run(folder) / "checkpoints", World(), keep=1).entries()[0]
    shards = [read_tensors(entry.folder / name) for name in entry.verify()["files"]]
    assert len(shards) == 2, out.read_text()
    assert {shard["parts"]["sync"]["step"] for shard in shards} == {entry.step}
    done = steps(folder)
    assert done == sorted(done)
