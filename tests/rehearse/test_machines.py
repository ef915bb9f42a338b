"""Nodes with an address, a hostname and a cable each; as root only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import require_program
from graftwerk.rehearse import accidents
from graftwerk.rehearse.cluster import PROGRAMS, Cluster
from graftwerk.rehearse.machines import PROGRAMS as NETWORK
from running import PYTHON, TINY, Forked, differences, newest_state, only_run

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]
KEYS = ["steps=3", "batch.micro=16", "evaluate.every=1000", "log.console=quiet"]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_program(*PROGRAMS, *NETWORK)
    folder = tmp_path_factory.mktemp("machines")
    with Cluster.start(folder, nodes=2, machines=True, disk_mb=1) as cluster:
        yield cluster


def reachable(cluster: Cluster, node: str) -> bool:
    code = f"import socket; socket.create_connection(('{node}', 6818), 2)"
    return cluster.run(sys.executable, "-c", code, check=False).returncode == 0


def test_machines_have_hostnames_and_addresses(machines: Cluster) -> None:
    said = machines.run("srun", "-N2", "hostname", "-i").stdout
    assert sorted(said.split()) == ["10.79.0.1", "10.79.0.2"]
    assert machines.run("hostname", on="n2").stdout == "n2\n"


def test_a_cable_can_be_pulled_and_put_back(machines: Cluster) -> None:
    assert reachable(machines, "n2")
    accidents.cut(machines, "n2")
    assert not reachable(machines, "n2")
    assert reachable(machines, "n1")
    accidents.heal(machines, "n2")
    assert reachable(machines, "n2")


def test_a_lost_machine_comes_back(machines: Cluster) -> None:
    accidents.lose(machines, "n2")
    assert not reachable(machines, "n2")
    accidents.heal(machines, "n2")
    assert machines.run("srun", "--nodelist=n2", "hostname").stdout == "n2\n"


def test_the_small_disk_fills_up(machines: Cluster) -> None:
    accidents.fill(machines)
    with pytest.raises(OSError, match="No space left"):
        (machines.disk / "more").write_bytes(b"x")
    accidents.free(machines)
    (machines.disk / "more").write_bytes(b"x")


def test_torchrun_meets_over_two_machines(machines: Cluster, tmp_path: Path) -> None:
    """One torchrun on each of two machines, and two local processes: the same weights."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=n1:29400", "--rdzv-id=1"]
    words = ["run", TINY, *KEYS]
    there = f"log.folder={tmp_path / 'there'}"
    env = PYTHON | {"OMP_NUM_THREADS": "1"}
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    machines.run(*srun, *torchrun, "-m", "graftwerk", *words, there, env=env)
    out = tmp_path / "out"
    with Forked(*words, f"log.folder={tmp_path / 'here'}", out=out, ranks=2) as here:
        assert here.wait() == 0, out.read_text()
    states = [newest_state(only_run(tmp_path / place))[1] for place in ("there", "here")]
    assert differences(states[0]["parts"]["objective"], states[1]["parts"]["objective"]) == []
