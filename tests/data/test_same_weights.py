from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doubles import tiny
from graftwerk.config import load
from graftwerk.data.config import Data
from running import differences, newest_state, only_run, train_here
from trees import tree, write_files, write_groups, write_shards, write_tar, write_zip


@pytest.mark.parametrize("workers", [0, 1])
def test_the_same_recipe_trains_to_the_same_weights_from_every_format(
    tmp_path: Path, rng: np.random.Generator, workers: int
):
    files = tree(rng)
    folder = write_files(files, tmp_path / "folder")
    splits = load(Data, {"kind": "folder", "path": folder}).open(0)
    paths = {
        "folder": folder,
        "tar": write_tar(dict(reversed(files.items())), tmp_path / "a.tar"),
        "zip": write_zip(files, tmp_path / "a.zip"),
        "hdf5": write_groups(splits, tmp_path / "a.h5"),
        "shards": write_shards(splits, tmp_path / "shards"),
    }
    states: dict[str, Any] = {}
    for kind, path in paths.items():
        keys = {"data": kind, "data.path": str(path), "data.workers": workers, "steps": 3}
        keys |= {"batch.size": 4, "batch.micro": 4, "augment.size": 32, "augment.hflip": 0.5}
        train_here(tiny(), tmp_path / "runs" / kind, **keys)
        states[kind] = newest_state(only_run(tmp_path / "runs" / kind))[1]["parts"]
    for kind in paths:
        assert differences(states["folder"], states[kind]) == []
