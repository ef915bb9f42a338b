"""Runs that no pool and no job looks after tell how they stand all the same."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from graftwerk.launch.commands import cancel
from graftwerk.launch.state import Status, status
from graftwerk.launch.sweep import Sweep
from running import PYTHON, command, graftwerk

RECIPE = """\
from doubles import Unhurried, tiny
from graftwerk.grid import grid
from graftwerk.run import Run

def one() -> Run:
    return tiny().model_copy(update={"objective": Unhurried(), "steps": 9_999})

def pair():
    return grid(one(), {"seed": range(2)})
"""


def until_running(folder: Path, process: subprocess.Popen[bytes]) -> list[Status]:
    """How the runs stand once one of them trains."""
    while True:
        assert process.poll() is None
        found = [folder] if (folder / "sweep.json").exists() else [*folder.glob("tiny-*")]
        members = [one for place in found for one in Sweep.open(place).members.values()]
        statuses = [status(one.folder, {}, one.name) for one in members]
        if any(one.state == "running" and one.step for one in statuses):
            return statuses
        time.sleep(0.2)


@pytest.mark.parametrize(("recipe", "processes"), [("one", 2), ("pair", 1)])
def test_a_run_of_the_command_itself(recipe: str, processes: int, tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    words = [f"recipe.py:{recipe}", f"processes={processes}", "log.every=1", "log.console=quiet"]
    with subprocess.Popen(command("run", *words), cwd=tmp_path, env=PYTHON) as process:
        runs = tmp_path / "runs"
        while not (places := [*runs.glob("sweeps/*"), *runs.glob("tiny-*")]):
            assert process.poll() is None
            time.sleep(0.2)
        place = places[0] if recipe == "pair" else runs
        states = [one.state for one in until_running(place, process)]
        assert states == ["running", "waiting"][: len(states)]
        assert cancel(place) == "1 runs cancelled"
        assert process.wait() == 75
    states = [one.state for one in Sweep.open(place).statuses({}).values()]
    assert states == ["cancelled", "waiting"][: len(states)]


def test_a_mistake_is_written_down_too(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    keys = ["model.pretrained=gone.pth", "steps=1"]
    assert graftwerk("run", "recipe.py:one", *keys, cwd=tmp_path).returncode == 2
    (one,) = Sweep.open(tmp_path / "runs").statuses({}).values()
    assert (one.state, one.attempts) == ("failed", 1)
    assert one.reason == "a mistake of the command or its data (exit code 2)"
