from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from graftwerk.data.workers import default_workers, processes
from running import PATIENCE, end, until


def test_default_workers_share_the_cores_between_the_ranks():
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    assert default_workers(1) == min(8, cores)
    assert default_workers(2) == min(8, cores // 2)
    assert default_workers(10 * cores) == 0


def _work(folder: Path, number: int) -> None:
    Path(folder, str(number)).touch()
    time.sleep(0.2)


def _many(folder: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with processes(2) as pool:
            list(pool.map(partial(_work, folder), range(1000)))
    except KeyboardInterrupt:
        os._exit(130)


def test_a_pool_obeys_one_ctrl_c(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """A terminal sends it to every process of the group."""
    process = get_context("fork").Process(target=_many, args=(tmp_path,))
    process.start()
    assert process.pid is not None
    try:
        until(lambda: len(list(tmp_path.iterdir())) > 6)  # and all its processes are started
        os.killpg(process.pid, signal.SIGINT)
        process.join(PATIENCE)
        assert process.exitcode == 130
    finally:
        if process.is_alive():
            end(process.pid)
    assert len(list(tmp_path.iterdir())) < 100
    assert "Traceback" not in capfd.readouterr().err
