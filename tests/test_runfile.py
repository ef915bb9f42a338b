from __future__ import annotations

import itertools
from pathlib import Path

import doubles
from graftwerk.runfile import load_module
from graftwerk.sync.config import Sync


def test_a_file_that_is_a_module_already_is_not_run_again() -> None:
    assert load_module(Path(doubles.__file__)) is doubles
    assert Sync.kinds["anchor"] is doubles.Anchor


def test_files_of_one_name_are_modules_of_their_own(tmp_path: Path) -> None:
    files = [tmp_path / folder / "one_of_many.py" for folder in ("a", "b", "c")]
    for file in files:
        file.parent.mkdir()
        file.write_text(f"folder = {file.parent.name!r}")
    modules = [load_module(file) for file in (*files, *files)]
    assert [module.folder for module in modules] == ["a", "b", "c"] * 2
    assert all(one is again for one, again in zip(modules[:3], modules[3:], strict=True))
    assert all(one is not other for one, other in itertools.combinations(modules[:3], 2))
