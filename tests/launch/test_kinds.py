"""Kinds that a user's recipe defines, wherever its runs are trained and read."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import require_program
from graftwerk import runfile
from graftwerk.errors import ConfigError
from graftwerk.recipes import find, find_pipeline
from graftwerk.rehearse.cluster import Cluster
from running import PYTHON, command, graftwerk, records, until

pytestmark = pytest.mark.long

RECIPE = """\
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graftwerk.config import Node
from graftwerk.data.config import Augment, Digits
from graftwerk.grid import grid
from graftwerk.log.config import Log
from graftwerk.models.config import Model
from graftwerk.objectives.config import Objective
from graftwerk.run import BatchSize, Run, Save
from sharpness import POWER

@dataclass
class Note:
    path: Path | None = None

class Sharp(Objective, kind="sharp"):
    power: float = POWER
    notes: tuple[Path, ...] = ()

    def build(self, net, **facts):
        from sharpness import SharpObjective
        return SharpObjective(net, self.power)

def one() -> Run:
    return Run(name="one", steps=4, objective=Sharp(), model=Model(name="test_convnext"),
               data=Digits(holdout=0.05, workers=0), augment=Augment(size=32),
               batch=BatchSize(size=8), save=Save(every="2 steps"), log=Log(tensorboard=False))

def two():
    return grid(one(), {"objective.power": (1.0, 3.0)})
"""
BESIDE = """\
POWER = 2.0

from graftwerk.objectives.supervised import Supervised

class SharpObjective(Supervised):
    def __init__(self, net, power):
        super().__init__(net, loss="ce", smoothing=0.0)
        self.power = power
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder whose recipe defines a kind, with help from a module beside it."""
    recipes = tmp_path / "project" / "recipes"
    recipes.mkdir(parents=True)
    (recipes / "mine.py").write_text(RECIPE)
    (recipes / "sharpness.py").write_text(BESIDE)
    return recipes.parent


def spoil(project: Path) -> None:
    """What a user does while jobs wait."""
    for file in (project / "recipes").glob("*.py"):
        file.write_text("raise RuntimeError('edited since')")


def test_jobs_know_the_kinds_of_their_submission(project: Path, slurm: Cluster) -> None:
    """Two runs side by side in a job."""
    words = ["recipes/mine.py:two", "--on=slurm", "launch.pack=2"]
    words += ["launch.slurm.extra.hold=true"]
    slurm.run(*command("run", *words), env={"OMP_NUM_THREADS": "1"}, cwd=project)
    runs = [*project.glob("runs/one-*")]
    kinds = {"mine": str(project / "recipes" / "mine.py")}
    assert [json.loads((run / runfile.KINDS).read_text()) for run in runs] == [kinds, kinds]
    spoil(project)
    job = json.loads((runs[0] / "job.json").read_text())["job"]
    slurm.run("scontrol", "release", job)
    notes = [run / "attempts.jsonl" for run in runs]
    until(lambda: all("ended" in told(note) for note in notes), tell=lambda: [*map(told, notes)])
    said = [path.read_text() for path in project.glob("runs/sweeps/*/logs/*.out")]
    codes = [json.loads(told(run / "attempts.jsonl").splitlines()[-1])["code"] for run in runs]
    assert codes == [0, 0], said
    assert [json.loads((run / runfile.KINDS).read_text()) for run in runs] == [kinds, kinds]


def told(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def test_pools_and_later_commands_know_them_too(project: Path) -> None:
    """The pool's terminal is closed as soon as it has begun."""
    require_program("script")
    words = command("run", "recipes/mine.py:two", "--jobs=2")
    begun = "until [ -s said ]; do sleep 0.1; done"
    line = f"nohup {shlex.join(words)} > said 2>&1 & {begun}"
    env = os.environ | PYTHON
    subprocess.run(["script", "-qc", line, "/dev/null"], cwd=project, env=env, check=True)
    said = project / "said"
    until(lambda: "; 0 to go" in told(said), tell=lambda: told(said))
    (sweep,) = project.glob("runs/sweeps/mine-*")
    assert "2 finished" in graftwerk("status", str(sweep), cwd=Path("/")).stdout
    assert "objective.power" in graftwerk("results", str(sweep), cwd=Path("/")).stdout
    folder = next(project.glob("runs/one-*"))
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    done = graftwerk("run", str(folder), cwd=project)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in records(folder, "event") if line["event"] == "resumed"] == [2]


def test_a_tree_is_equal_when_read_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    run = find("recipes/mine.py:one")
    folder = project / "kept"
    folder.mkdir()
    for name, text in runfile.contents(run).items():
        (folder / name).write_text(text)
    assert runfile.read(folder) == run
    assert find(str(folder)) == run
    assert len(find_pipeline("recipes/mine.py:two").runs) == 2
    code = f"from graftwerk.recipes import find; print(find({str(folder)!r}).objective.power)"
    there = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, check=True)
    assert there.stdout == b"2.0\n"


def test_kinds_that_are_gone_are_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / runfile.KINDS).write_text('{"not_here": "/gone/not_here.py"}')
    with pytest.raises(ConfigError, match=r"kinds are defined in /gone/not_here\.py: No module"):
        runfile.read(tmp_path)


def test_a_recipe_may_be_called_like_another_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(RECIPE.replace("sharpness", "sharper"))
    (tmp_path / "sharper.py").write_text(BESIDE)
    run = find(f"{tmp_path / 'json.py'}:one")
    assert json.loads("1") == 1
    assert type(run.objective).__module__.startswith("json_")
