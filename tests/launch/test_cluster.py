"""Everything that happens to jobs, to one run on two nodes: its weights are as if nothing had."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from conftest import require_program
from graftwerk.rehearse import accidents
from graftwerk.rehearse.cluster import PROGRAMS, Cluster
from graftwerk.rehearse.machines import PROGRAMS as NETWORK
from graftwerk.verify.jobs import REFUSED
from running import PYTHON, TINY, Forked, checkpoints, command, differences, newest_state

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]  # five attempts
STEPS = 90
KEYS = [
    f"steps={STEPS}",
    "save=3 steps",
    "evaluate.every=1000",
    "objective=unhurried",
    "batch.micro=32",
]
"""Half a minute of training, which hardly needs the processor."""
PATIENCE = 600


def until(happened: Callable[[], bool], cluster: Cluster, tell: Callable[[], str]) -> None:
    """Wait for it; a requeued job hardly waits for its old credential here."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.3)
        waiting = cluster.run("squeue", "-h", "-o%A %r").stdout.splitlines()
        for job in (line.split()[0] for line in waiting if line.endswith("BeginTime")):
            time.sleep(REFUSED)
            cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)


def test_a_run_survives_its_cluster(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two time limits, a preemption, a lost node."""
    require_program(*PROGRAMS)
    machines = os.geteuid() == 0
    if machines:
        require_program(*NETWORK)
    here, there = tmp_path / "here", tmp_path / "there"
    short = tmp_path_factory.mktemp("c")
    with Cluster.start(short, nodes=2, machines=machines, grace=60) as cluster:
        slurm = ["--on=slurm", "launch.slurm.nodes=2", "launch.slurm.time=60"]
        words = command("run", TINY, *KEYS, *slurm, f"log.folder={there}")
        cluster.run(*words, env=PYTHON | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path)
        (run,) = there.glob("tiny-*")
        job = json.loads((run / "job.json").read_text())["job"]

        def attempts() -> list[dict[str, object]]:
            file = run / "attempts.jsonl"
            return [*map(json.loads, file.read_text().splitlines())] if file.exists() else []

        def saved() -> int:
            """The newest checkpoint's step."""
            return max(checkpoints(there), default=0)

        def tell() -> str:
            said = [path.read_text() for path in there.glob("sweeps/*/logs/*")]
            return "\n".join([str(attempts()), cluster.run("squeue").stdout, *said])

        def progressed(since: int) -> bool:
            return saved() > since

        done = 0
        for accident in (
            partial(accidents.time_limit, cluster, job),
            partial(accidents.time_limit, cluster, job),
            partial(accidents.preempt, cluster, job, 1.0),
            partial(accidents.lose, cluster, "n2"),
        ):
            until(partial(progressed, done), cluster, tell)
            began = sum("began" in line for line in attempts())
            accident()
            if "n2" in accident.args:
                accidents.heal(cluster, "n2")
            until(lambda n=began: sum("began" in line for line in attempts()) > n, cluster, tell)
            done = saved()
            assert done < STEPS, "too quick for accidents"
        until(lambda: saved() == STEPS and "ended" in attempts()[-1], cluster, tell)
        began = [line for line in attempts() if "began" in line]
        assert len(began) == 5
        assert all(str(line["from"]) for line in began[1:])
    out = tmp_path / "out"
    with Forked("run", TINY, *KEYS, f"log.folder={here}", out=out, ranks=2) as process:
        assert process.wait() == 0, out.read_text()
    (undisturbed,) = here.glob("tiny-*")
    states = [newest_state(folder)[1]["parts"] for folder in (undisturbed, run)]
    assert differences(*states) == []
