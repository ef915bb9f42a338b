"""Workers that have a network each, of which one is unplugged: needs root and iproute2."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from benchmarks.netns import Cluster, missing

import gathering
from graftwerk.errors import APART
from running import PATIENCE, until

SIZE, TIMEOUT = 3, 8.0

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def start(cluster: Cluster, folder: Path) -> list[subprocess.Popen[str]]:
    env = {
        "WORLD_SIZE": str(SIZE),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": cluster.address(0),
        "MASTER_PORT": "29500",
    }
    command = [sys.executable, gathering.__file__, str(folder), str(TIMEOUT)]
    return [cluster.start(rank, command, env | {"RANK": str(rank)}) for rank in range(SIZE)]


def until_seen(members: str, by: Collection[int], folder: Path) -> None:
    """Wait until these workers agree on their members."""

    def seen() -> list[str]:
        files = [folder / str(rank) for rank in by]
        lines = [file.read_text().splitlines()[-1:] for file in files if file.exists()]
        return [line.partition(" ")[2] for last in lines for line in last]

    until(lambda: seen() == [members] * len(by), tell=seen)


def test_of_a_cut_network_one_side_goes_on(tmp_path: Path) -> None:
    with Cluster(SIZE) as cluster:
        workers = start(cluster, tmp_path)
        until_seen("0 1 2", range(3), tmp_path)
        cluster.plug(2, into_switch=False)
        out, _ = workers[2].communicate(timeout=PATIENCE)
        assert workers[2].returncode == APART
        assert "so that no two groups train separately" in out
        until_seen("0 1", range(2), tmp_path)
        (tmp_path / "stop").touch()
        assert [worker.wait(PATIENCE) for worker in workers[:2]] == [0, 0]
