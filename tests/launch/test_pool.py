"""Grids and graphs on this machine; the processes of the pool are stand-ins that train nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from graftwerk.grid import grid
from graftwerk.launch.here import run_here
from graftwerk.launch.retry import retry
from graftwerk.launch.state import Status
from graftwerk.launch.sweep import Sweep
from graftwerk.pipeline import Pipeline
from graftwerk.run import Run
from jobs import one_four_one_one, ordered


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "stand-in" / "graftwerk"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(Path(__file__).with_name("payload.py"), package / "__main__.py")
    places = [str(package.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def trained(graph: Pipeline, jobs: int) -> int:
    return run_here(graph, "mine.py", [], [], jobs)


def sweep() -> Sweep:
    (folder,) = Path("runs/sweeps").glob("mine-*")
    return Sweep.open(folder)


def statuses() -> dict[str, Status]:
    return sweep().statuses({})


def test_a_grid_with_failures_is_completed_by_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    lots = grid(Run(name="g"), {"seed": range(24)})
    for name in ("3", "4", "17"):
        ordered(lots.runs[name], "f")
    assert trained(lots, 4) == 1
    found = statuses()
    assert [name for name, one in found.items() if one.state == "failed"] == ["3", "4", "17"]
    assert found["3"].reason == "crashed (exit code 1)"
    assert sum(one.state == "finished" for one in found.values()) == 21
    folder = (sweep().folder or Path()).absolute()
    monkeypatch.chdir("/")
    assert retry(folder, [], 2) == 0
    found = Sweep.open(folder).statuses({})
    assert {(one.state, one.attempts) for one in found.values()} == {("finished", 1)}


def test_a_graph_waits_for_what_failed() -> None:
    graph = one_four_one_one()
    assert trained(graph, 2) == 1
    found = statuses()
    assert {name for name, one in found.items() if one.state == "finished"} == {
        "one", "part_0", "part_1", "part_3",
    }  # fmt: skip
    assert (found["whole"].state, found["whole"].reason) == ("waiting", "for part_2")
    assert (found["end"].state, found["end"].reason) == ("waiting", "for whole")
    assert retry(sweep().folder or Path(), [], 2) == 0
    assert {one.state for one in statuses().values()} == {"finished"}
    assert statuses()["one"].attempts == 1
