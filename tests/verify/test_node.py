"""What `verify-resume --on slurm` does on a node, to processes that say they are of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from graftwerk.verify import node

SAVES = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1], "checkpoints")
for step in range(10**6):
    partial = folder / f".step-{step:08d}.partial"
    print("ready", flush=True)
    time.sleep(0.2)
    partial.mkdir()
    try:
        (partial / "rank0.pt").write_bytes(bytes(2**20))
    except OSError:
        with (folder.parent / "log.jsonl").open("a") as log:
            log.write('{"kind": "event", "event": "save_failed"}' + chr(10))
    time.sleep(2)
    (partial / "rank0.pt").unlink(missing_ok=True)
    partial.rmdir()
"""
JOB = str(10**8 + os.getpid())
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A process that saves, of step 0 of the same job unless told otherwise; this test is step 1.

    The job's number is nobody else's: what is looked for, and killed, is looked for everywhere.
    """
    monkeypatch.setenv("SLURM_JOB_ID", JOB)
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    (tmp_path / "checkpoints").mkdir()
    started: list[subprocess.Popen[str]] = []

    def start(job: str = JOB, step: str = "0", **env: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", SAVES, str(tmp_path)]
        of_job = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": step}
        process = subprocess.Popen(
            words, env=os.environ | of_job | env, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_killed_in_the_middle_of_a_save(start: Start, tmp_path: Path) -> None:
    victim = start()
    assert node.killed_while_saving(tmp_path, 0) == "SIGKILL while a checkpoint is written"
    assert victim.wait(60) == -signal.SIGKILL
    assert list((tmp_path / "checkpoints").glob(".step-*.partial"))


def test_a_disk_is_full_for_ranks_until_a_save_failed(start: Start, tmp_path: Path) -> None:
    rank = start(RANK="0")
    said = node.full_disk(tmp_path, 2**19)
    assert said == "no file beyond 524,288 bytes, SIGKILL after a save failed"
    assert rank.wait(60) == -signal.SIGKILL
    (left,) = (tmp_path / "checkpoints").glob("*/rank0.pt")
    assert left.stat().st_size <= 2**19


def test_other_jobs_and_this_step_are_left_alone(start: Start, tmp_path: Path) -> None:
    other = start(job=f"{JOB}0")
    assert node.trainers() == []
    assert node.killed_while_saving(tmp_path, 0) is None
    assert node.full_disk(tmp_path, 2**19) is None
    assert other.poll() is None
