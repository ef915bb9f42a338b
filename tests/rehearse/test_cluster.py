from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import require_program
from graftwerk.rehearse import accidents, processes
from graftwerk.rehearse.cluster import PROGRAMS, Cluster
from running import until

JOB = """\
#!/bin/sh
#SBATCH --signal=B:USR2@60
{body}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that may be broken; healthy again after each test that breaks one."""
    require_program(*PROGRAMS)
    with Cluster.start(tmp_path_factory.mktemp("pair"), nodes=2, grace=1) as cluster:
        yield cluster


def submit(cluster: Cluster, folder: Path, body: str, *options: str) -> tuple[str, Path]:
    """The job's number, and the file that it writes to."""
    script, out = folder / "job.sh", folder / "out"
    script.write_text(JOB.format(body=body))
    words = ["sbatch", "--parsable", f"--output={out}", "--open-mode=append", *options]
    job = cluster.run(*words, str(script)).stdout.strip()
    return job, out


def wait_for(out: Path, text: str) -> None:
    until(
        lambda: out.exists() and text in out.read_text(),
        tell=lambda: out.exists() and out.read_text(),
    )


def test_nodes_run_jobs_and_their_gpus_are_faked(slurm: Cluster) -> None:
    said = slurm.run("srun", "-N4", "--gpus-per-node=2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert said.stdout.split() == ["0,1"] * 4


def test_time_limit_signals_what_the_script_asks_for(slurm: Cluster, tmp_path: Path) -> None:
    body = "trap 'echo warned; kill $!' USR2\necho up\nsleep 600 &\nwait"
    job, out = submit(slurm, tmp_path, body)
    wait_for(out, "up")
    assert accidents.time_limit(slurm, job) == f"USR2 to the batch shell of job {job}"
    wait_for(out, "warned")


def test_preemption_is_announced_by_sigterm(pair: Cluster, tmp_path: Path) -> None:
    """The job ends by itself in its time of grace, and requeues itself."""
    trap = 'trap "echo told; exit 75" TERM'
    task = f"{trap}; echo start $SLURM_RESTART_COUNT; while :; do sleep 1; done"
    body = f"srun sh -c '{task}' || scontrol requeue $SLURM_JOB_ID"
    job, out = submit(pair, tmp_path, body, "--nodes=1")
    wait_for(out, "start")
    accidents.preempt(pair, job, seconds=1)
    wait_for(out, "told")
    wait_for(out, "start 1")
    pair.run("scancel", job)


def test_a_lost_node_requeues_its_job_and_comes_back(pair: Cluster, tmp_path: Path) -> None:
    body = "srun sh -c 'echo start $SLURM_RESTART_COUNT on $SLURMD_NODENAME; sleep 600'"
    job, out = submit(pair, tmp_path, body, "--nodes=2")
    wait_for(out, "on n2")
    accidents.lose(pair, "n2")
    assert [*processes.of_jobs(pair.folder, "n2")] == []
    accidents.heal(pair, "n2")
    wait_for(out, "start 1 on n2")
    pair.run("scancel", job)
