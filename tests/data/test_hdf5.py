from __future__ import annotations

import pickle
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from graftwerk.config import load
from graftwerk.data.config import Data
from graftwerk.data.source import Source, Splits
from graftwerk.errors import DataError
from trees import content, same, tree, write_files, write_groups


def opened(path: Path, **keys: Any) -> Splits:
    return load(Data, {"kind": "hdf5", "path": path, **keys}).open(0)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Splits:
    path = write_files(tree(rng), tmp_path / "folder")
    return load(Data, {"kind": "folder", "path": path}).open(0)


def write_rows(splits: Splits, path: Path, column: bool = True) -> Path:
    """The layout of rows: `targets` [n, 1] or [n]."""
    samples = content(splits.train) + content(splits.val)
    with h5py.File(path, "w") as file:
        rows = file.create_dataset("encoded_images", (len(samples),), h5py.vlen_dtype(np.uint8))
        for number, (raw, _) in enumerate(samples):
            rows[number] = np.frombuffer(raw, np.uint8)  # pyright: ignore[reportArgumentType, reportCallIssue]
        targets = np.array([target for _, target in samples])
        file["targets"] = targets[:, None] if column else targets
    return path


@pytest.mark.parametrize("column", [True, False])
def test_rows_of_variable_length(tmp_path: Path, folder: Splits, column: bool):
    path = write_rows(folder, tmp_path / "a.hdf5", column)
    splits = opened(path, splits=[len(folder.train), len(folder.val)])
    assert content(splits.train) == content(folder.train)
    assert content(splits.val) == content(folder.val)
    assert splits.train.name(3) == f"{path}: encoded_images[3]" == splits.train.name(3)
    assert len(opened(path, holdout=0.25).val) == 6


def test_groups_with_offsets(tmp_path: Path, folder: Splits):
    path = write_groups(folder, tmp_path / "a.h5")
    assert same(opened(path), folder)
    assert "a.h5: 4.jpg (at byte " in opened(path).train.name(4)


def _read_in_child(source: Source) -> list[tuple[object, int]]:
    return content(source)


@pytest.mark.parametrize("write", [write_rows, write_groups])
def test_processes_read_for_themselves(
    tmp_path: Path, folder: Splits, write: Callable[[Splits, Path], Path]
):
    source = opened(write(folder, tmp_path / "a.h5"), splits=[15, 6]).train
    source.read(0)  # the parent has it open when it forks
    with get_context("fork").Pool(2) as pool:
        for found in pool.map(_read_in_child, [source] * 4):
            assert found == content(folder.train)
    assert content(pickle.loads(pickle.dumps(source))) == content(folder.train)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crc32": None}, "the group train has no crc32"),
        ({"targets": [0, 1]}, "the columns of train are of different lengths"),
        ({"targets": [3] * 15}, "train/targets[0] is 3, of 3 classes"),
        ({"targets": [-1] * 15}, "train/targets[0] is -1, of 3 classes"),
        ({"bytes": np.zeros(7, np.uint8)}, "the columns of train are of different lengths"),
    ],
)
def test_bad_groups_are_refused(tmp_path: Path, folder: Splits, changes: Any, said: str):
    with pytest.raises(DataError) as error:
        opened(write_groups(folder, tmp_path / "a.h5", **changes))
    assert str(error.value).startswith(f"{tmp_path / 'a.h5'}: ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: f.__delitem__("targets"), "neither the group train nor targets"),
        (lambda f: _replace(f, "targets", np.zeros(4, int)), "21 encoded_images, but 4 targets"),
        (lambda f: _replace(f, "targets", np.zeros(21)), "targets should be integers"),
        (lambda f: _replace(f, "targets", np.zeros((21, 2), int)), "targets should be integers"),
        (lambda f: _replace(f, "targets", [*range(15), *[15] * 6]), "targets[15] is 15, and the"),
        (lambda f: _replace(f, "targets", [-1] * 21), "targets[0] is below 0"),
        (lambda f: _replace(f, "targets", [0] * 21), "all targets are 0"),
        (lambda f: _replace(f, "encoded_images", np.zeros((21, 9))), "should be rows of uint8"),
    ],
)
def test_bad_rows_are_refused(
    tmp_path: Path, folder: Splits, damage: Callable[[Any], None], said: str
):
    path = write_rows(folder, tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        damage(file)
    with pytest.raises(DataError) as error:
        opened(path, splits=[15, 6])
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def _replace(file: Any, name: str, values: Any) -> None:
    del file[name]
    file[name] = values


def test_a_file_that_is_cut_off_or_none_is_refused(tmp_path: Path, folder: Splits):
    path = write_groups(folder, tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"a\.h5: is no intact HDF5 file"):
        opened(path)
    with pytest.raises(DataError, match=r"b\.h5: no such file; set data\.path"):
        opened(tmp_path / "b.h5")
    with pytest.raises(DataError, match=r"data\.splits needs .* at most 21 \(got 20, 2\)"):
        opened(write_rows(folder, tmp_path / "c.h5"), splits=[20, 2])
