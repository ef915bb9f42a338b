"""Run folders: found again by the same command, and not by another version's defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graftwerk import config, runfolder
from graftwerk.errors import ConfigError
from graftwerk.run import Run


def begun(folder: Path, **old: object) -> Run:
    """A run whose folder says that its keys were `old`."""
    run = config.override(Run, Run(name="r"), {"log.folder": str(folder)})
    runfolder.prepare(run)
    file = run.folder / "run.json"
    tree = json.loads(file.read_text())
    for key, value in old.items():
        tree[key] |= value
    file.write_text(json.dumps(tree))
    return run


def test_another_version_with_other_defaults_does_not_go_on(tmp_path: Path) -> None:
    run = begun(tmp_path, optim={"lr": 123.0}, data={"workers": 77})
    with pytest.raises(ConfigError) as error:
        runfolder.prepare(run)
    (problem,) = error.value.problems
    assert problem.startswith("optim.lr: ")
    assert "123.0" in problem
    moved = runfolder.prepare(run.model_copy(update={"resume": "never"}))
    assert moved is not None
    assert json.loads((moved / "run.json").read_text())["optim"]["lr"] == 123.0


def test_keys_that_a_version_has_not_are_no_difference(tmp_path: Path) -> None:
    run = begun(tmp_path, optim={"of_another_version": 1})
    assert runfolder.prepare(run) is None
    assert "of_another_version" not in json.loads((run.folder / "run.json").read_text())["optim"]
