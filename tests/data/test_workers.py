from __future__ import annotations

import os
import sys

from graftwerk.data.workers import default_workers


def test_default_workers_share_the_cores_between_the_ranks():
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    assert default_workers(1) == min(8, cores)
    assert default_workers(2) == min(8, cores // 2)
    assert default_workers(10 * cores) == 0
