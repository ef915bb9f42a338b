"""A cable is pulled and nobody is told: the run goes on elsewhere, as if nothing had happened."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import require_program
from graftwerk.rehearse import accidents
from graftwerk.rehearse.cluster import PROGRAMS, Cluster
from graftwerk.rehearse.machines import PROGRAMS as NETWORK
from running import PYTHON, TINY, Forked, command, differences, newest_state

STEPS = 60
KEYS = [f"steps={STEPS}", "save=3 steps", "evaluate.every=1000", "batch.micro=4"]
PATIENCE = 800

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


def test_a_cut_machine_is_left_behind(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Three machines, a run on two of them; Slurm finds out after its SlurmdTimeout."""
    require_program(*PROGRAMS, *NETWORK)
    here, there = tmp_path / "here", tmp_path / "there"
    with Cluster.start(tmp_path_factory.mktemp("c"), nodes=3, machines=True) as cluster:
        slurm = ["--on=slurm", "launch.slurm.nodes=2", "launch.slurm.time=60"]
        words = command("run", TINY, *KEYS, *slurm, f"log.folder={there}")
        cluster.run(*words, env=PYTHON | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path)
        (run,) = there.glob("tiny-*")

        def attempts() -> list[dict[str, object]]:
            file = run / "attempts.jsonl"
            return [*map(json.loads, file.read_text().splitlines())] if file.exists() else []

        def until(happened: Callable[[], object]) -> None:
            deadline = time.monotonic() + PATIENCE
            while not happened():
                said = [path.read_text() for path in there.glob("sweeps/*/logs/*")]
                tell = [str(attempts()), cluster.run("squeue").stdout, *said]
                assert time.monotonic() < deadline, "\n".join(tell)
                time.sleep(0.2)

        until(lambda: list(run.glob("checkpoints/step-*")))
        accidents.cut(cluster, "n2")
        until(lambda: sum("began" in line for line in attempts()) == 2)
        assert attempts()[-1]["node"] == "n[1,3]"
        until(lambda: "ended" in attempts()[-1])
        assert attempts()[-1]["code"] == 0
    out = tmp_path / "out"
    with Forked("run", TINY, *KEYS, f"log.folder={here}", out=out, ranks=2) as process:
        assert process.wait() == 0, out.read_text()
    (undisturbed,) = here.glob("tiny-*")
    states = [newest_state(folder)[1]["parts"] for folder in (undisturbed, run)]
    assert differences(*states) == []
