"""`graftwerk verify-resume --on slurm`: jobs of a private cluster that are killed and come back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graftwerk.cli import main
from graftwerk.launch.slurm import SlurmError, beside, cancel, queue, submit
from graftwerk.rehearse.cluster import Cluster
from graftwerk.verify import jobs
from graftwerk.verify.jobs import KINDS, kinds
from jobs import until
from moments import early_seed
from running import PYTHON, TINY

pytestmark = pytest.mark.long

KEYS = ["objective=unhurried", "batch.micro=64", "steps=25", "save=3 steps", "evaluate.every=1000"]
"""Five seconds of training, and no wait for the processor."""
BESIDE = ("SIGKILL while saving", "full disk")
"""Kinds that begin a process on the node, for which so short a run may be over (`test_node.py`)."""


def test_jobs_that_are_killed_end_with_the_same_bits(
    slurm: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {**slurm.env, **PYTHON, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    quick = {name: kind for name, kind in kinds().items() if name not in BESIDE}
    monkeypatch.setattr(jobs, "kinds", lambda: quick)
    seed = str(early_seed(1, 25, quick))
    words = ["verify-resume", TINY, "--on=slurm", "--kills=1", "--seed", seed, "--json", *KEYS]
    code, said = main([*words, "data.workers=0"]), capsys.readouterr()
    assert code == 0, f"seed {seed}: {said}"
    found = json.loads(said.out)
    assert found["equal"]
    assert found["hits"], f"seed {seed}"
    for hit in found["hits"]:
        how = "submitted" if hit["kind"] == "job killed" else "queued"
        assert hit["did"].endswith(f"; {how} again"), f"seed {seed}"
    assert slurm.run("squeue", "--noheader").stdout == ""
    assert not list(tmp_path.iterdir()), "the trainings were equal"


def test_a_command_beside_a_job(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n#SBATCH --nodes=2 --output=/dev/null\nsrun sleep 600\n")
    job = submit(script)
    try:
        until(lambda: queue()[job].running)
        said = beside(job, ["sh", "-c", "echo $SLURM_JOB_ID of $SLURM_NNODES"])
        assert said == [f"{job} of 2"] * 2
    finally:
        cancel([job])
    with pytest.raises(SlurmError):
        beside("999999", ["true"])


def test_only_a_rehearsed_cluster_loses_nodes(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert kinds() == KINDS
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    assert kinds().keys() - KINDS.keys() == {"lost node"}


def test_without_slurm_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["verify-resume", TINY, "--on=slurm", "--folder", str(tmp_path / "both")]) == 2
    assert "--on slurm needs Slurm's commands on this machine" in capsys.readouterr().err
