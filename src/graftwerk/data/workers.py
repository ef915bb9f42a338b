"""Processes that read images: how many, and how they are started."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context

CONTEXT = get_context("fork" if sys.platform == "linux" else "spawn")
MAX_WORKERS = 8


def default_workers(local_size: int) -> int:
    """Loader processes of a rank: its part of this process's cores, at most 8."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(MAX_WORKERS, cores // local_size)


@contextmanager
def processes(workers: int) -> Generator[ProcessPoolExecutor]:
    """A pool whose processes leave Ctrl-C to this one, and that then does nothing more."""
    initializer = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, CONTEXT, initializer) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
