"""Runs that no pool and no job looks after tell how they stand all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftwerk.launch.commands import cancel
from graftwerk.launch.state import status
from graftwerk.launch.sweep import Sweep
from running import Forked, graftwerk, steps, until

RECIPE = """\
from doubles import Unhurried, tiny
from graftwerk.grid import grid
from graftwerk.run import Run

def one() -> Run:
    return tiny().model_copy(update={"objective": Unhurried(), "steps": 9_999})

def pair():
    return grid(one(), {"seed": range(2)})
"""


def states(place: Path) -> list[str]:
    """Of the runs there, once there are any."""
    members = Sweep.open(place).members.values()
    return [status(one.folder, {}, one.name).state for one in members]


@pytest.mark.parametrize(("recipe", "processes"), [("one", 2), ("pair", 1)])
def test_a_run_of_the_command_itself(recipe: str, processes: int, tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    words = [f"recipe.py:{recipe}", f"processes={processes}", "log.every=1", "log.console=quiet"]
    runs, out = tmp_path / "runs", tmp_path / "out"
    with Forked("run", *words, out=out, cwd=tmp_path) as process:
        until(lambda: steps(runs), process, out.read_text)
        place = next(runs.glob("sweeps/*")) if recipe == "pair" else runs
        assert states(place) == ["running", "waiting"][: len(states(place))]
        assert cancel(place) == "1 runs cancelled"
        assert process.wait() == 75
    assert states(place) == ["cancelled", "waiting"][: len(states(place))]


def test_a_mistake_is_written_down_too(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    keys = ["model.pretrained=gone.pth", "steps=1"]
    assert graftwerk("run", "recipe.py:one", *keys, cwd=tmp_path).returncode == 2
    (one,) = Sweep.open(tmp_path / "runs").statuses({}).values()
    assert (one.state, one.attempts) == ("failed", 1)
    assert one.reason == "a mistake of the command or its data (exit code 2)"
