"""Loader processes when something goes wrong around them: signals, and a crash of the run."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from graftwerk.axes import Batch
from graftwerk.data.config import Augment, Folder
from graftwerk.data.order import Order
from graftwerk.data.source import Source
from graftwerk.data.transforms import train_transform
from loading import batches_of

CRASH = """
import multiprocessing, sys
from pathlib import Path
from graftwerk.data.config import Augment, Folder
from graftwerk.data.loader import train_batches
from graftwerk.data.order import Order
from graftwerk.data.transforms import train_transform

multiprocessing.set_start_method(sys.argv[2])
data = Folder(path=Path(sys.argv[1]))
batches = train_batches(
    data.open(0).train, train_transform(Augment(size=16), data), Order(22, 2),
    seed=0, rank=0, world_size=1, micro=2, workers=2, on_error="fail",
    start_step=0, total_steps=1000, pin_memory=False,
)
next(batches)
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
raise ValueError("a bug")
"""


def forty_batches(source: Source, workers: int) -> Iterator[Batch]:
    augment = Augment(size=16, policy="rand-m9-mstd0.5-inc1")
    transform = train_transform(augment, Folder(path=Path()))
    order = Order(len(source), 2, seed=5)
    return batches_of(source, transform, order, workers=workers, total_steps=40)


@pytest.mark.parametrize("name", ["INT", "TERM", "USR1", "USR2"])
def test_workers_outlive_signals_from_outside(images: Source, name: str):
    if name == "TERM" and sys.platform == "darwin":
        pytest.skip("macOS does not say who sent a signal")
    before = {process.pid for process in multiprocessing.active_children()}
    batches = forty_batches(images, workers=2)
    received = [next(batches), next(batches)]
    workers = [p for p in multiprocessing.active_children() if p.pid not in before]
    assert len(workers) == 2
    for worker in workers:
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    received += batches
    for one, other in zip(received, forty_batches(images, workers=0), strict=True):
        assert torch.equal(one.images_nchw, other.images_nchw)


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_crash_of_the_main_process_leaves_no_worker_behind(method: str, tmp_path: Path):
    """The loader is still alive in the traceback, so only Python's own exit ends its processes."""
    command = [sys.executable, "-c", CRASH, str(tmp_path), method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert "ValueError: a bug" in done.stderr
    pids = done.stdout.split()
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
