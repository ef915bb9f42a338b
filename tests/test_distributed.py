from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from graftwerk.axes import World
from graftwerk.distributed import (
    ElsewhereError,
    first_host,
    on_all,
    port_of_job,
    ranks_from_environment,
    shorten_timeout,
    tasks_on_node,
)
from graftwerk.errors import GraftwerkError, StorageError
from graftwerk.launch.local import run_workers
from graftwerk.rehearse.cluster import Cluster
from running import PYTHON, TINY, Forked, command, graftwerk, only_run, records
from workers import together

pytestmark = pytest.mark.long

KEYS = ["steps=3", "batch.micro=16", "log.every=1", "save=1 epoch", "evaluate.every=1000"]


@pytest.mark.parametrize(
    ("counts", "per_node"),
    [("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,2(x2)", [1, 2, 2]), ("8(x2)", [8, 8])],
)
def test_slurms_task_counts(counts: str, per_node: list[int]) -> None:
    assert [tasks_on_node(counts, node) for node in range(len(per_node))] == per_node


def test_ports_come_from_job_ids_and_are_no_system_ports() -> None:
    ports = {port_of_job(job) for job in range(1, 5000)}
    assert len(ports) == 4999
    assert 10_000 <= min(ports) <= max(ports) < 32_768


def test_alone_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}:
            monkeypatch.delenv(name)
    assert ranks_from_environment() == (0, 1, 0, 1)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(only_run(folder), "train")]


def test_torchrun_srun_and_local_workers_train_the_same(tmp_path: Path, slurm: Cluster) -> None:
    """Three launchers, one command, two ranks each: the same losses to the last bit."""
    words = ["run", TINY, *KEYS]
    env = os.environ | PYTHON | {"OMP_NUM_THREADS": "1"}

    local = graftwerk(*words, "processes=2", f"log.folder={tmp_path / 'local'}", cwd=tmp_path)
    assert local.returncode == 0, local.stderr

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node=2", "-m", "graftwerk", *words]
    subprocess.run([*torchrun, f"log.folder={tmp_path / 'torchrun'}"], env=env, check=True)

    srun = ["srun", "--nodelist=n1", "--ntasks=2"]
    shown = slurm.run(*srun, sys.executable, "-c", RANKS, env=env)
    env |= {"MASTER_ADDR": "127.0.0.1"}  # what n1 would resolve to
    slurm.run(*srun, *command(*words, f"log.folder={tmp_path / 'srun'}"), env=env)
    assert sorted(map(json.loads, shown.stdout.splitlines())) == [
        [[0, 2, 0, 2], "n1"],
        [[1, 2, 1, 2], "n1"],
    ]
    results = {name: losses(tmp_path / name) for name in ("local", "torchrun", "srun")}
    assert len(results["local"]) == 3
    assert results["torchrun"] == results["local"]
    assert results["srun"] == results["local"]


RANKS = """
import json, os
from graftwerk.distributed import ranks_from_environment
print(json.dumps([ranks_from_environment(), os.environ["MASTER_ADDR"]]))
"""


def test_first_host_of_a_list(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    assert first_host("gpu[07-09],login1") == "gpu07"


def test_failing_worker_ends_the_others_with_its_code(tmp_path: Path) -> None:
    """Rank 1 leaves with code 3 before it joins; rank 0 would wait for it for ever."""
    script = tmp_path / "recipe.py"
    script.write_text(
        "import os, sys\n"
        "from graftwerk.run import Run\n"
        "def broken():\n"
        "    if os.environ.get('RANK') == '1':\n"
        "        sys.exit(3)\n"
        "    return Run(processes=2)\n"
    )
    assert run_workers(2, ["run", str(script), f"log.folder={tmp_path}"]) == 3


def test_uneven_batch_is_refused_on_all_ranks(tmp_path: Path) -> None:
    out, words = tmp_path / "out", ["run", TINY, f"log.folder={tmp_path}"]
    with Forked(*words, out=out, ranks=3) as ranks:
        ranks.wait()
    assert [rank.exitcode for rank in ranks.ranks] == [2, 2, 2]
    assert "batch.size: 64 images can't be shared equally by 3 processes" in out.read_text()
    assert "Traceback" not in out.read_text()


def test_what_fails_on_one_rank_ends_all_with_its_reason() -> None:
    def attempt(world: World) -> tuple[type[Exception], int, str] | int:
        def work() -> int:
            if world.rank == failing:
                raise StorageError("data.path: no such disk")
            return world.rank

        try:
            return on_all(world, work)
        except GraftwerkError as error:
            return type(error), error.exit_code, str(error)

    failing = None
    assert together(3, attempt) == [0, 1, 2]
    failing = 1
    first, second, third = together(3, attempt)
    assert second == (StorageError, 74, "data.path: no such disk")
    elsewhere = f"rank 1 on {socket.gethostname()}: data.path: no such disk"
    assert first == third == (ElsewhereError, 74, elsewhere)


def test_a_shorter_time_out_holds_for_the_group_of_gradients() -> None:
    store = HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        shorten_timeout(7)
        gloo: Any = dist.group.WORLD._get_backend(torch.device("cpu"))  # pyright: ignore
        assert gloo.options._timeout == timedelta(seconds=7)
    finally:
        dist.destroy_process_group()
