"""Tables: how rows are split and scaled, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from graftwerk.config import load
from graftwerk.data.config import Data, Higgs, Table
from graftwerk.errors import DataError
from graftwerk.recipes.dst import higgs
from running import configured, train_here

COLUMNS = ["mass", "target", "angle, squared", "flat"]


@pytest.fixture
def table() -> np.ndarray:
    rng = np.random.default_rng(7)
    target = (rng.random(400) < 0.25).astype(float)
    return np.stack([5 + 3 * rng.normal(size=400) + target, target, rng.random(400), target * 0], 1)


def write(path: Path, table: np.ndarray, columns: list[str] = COLUMNS) -> Path:
    header = ",".join(f'"{name}"' for name in columns)
    np.savetxt(path, table, delimiter=",", header=header, comments="")
    return path


def test_rows_are_split_by_class_and_scaled_by_those_learnt_from(
    tmp_path: Path, table: np.ndarray
) -> None:
    path = write(tmp_path / "rows.csv", table)
    config = Table(path=tmp_path, features=3)
    splits = config.open(seed=0)
    test = Table(path=path, features=3, test=True).open(seed=1)
    parts = [splits.train, splits.val, test.val]
    assert [len(part) for part in parts] == [280, 60, 60]
    assert splits.classes == ("0", "1")
    for part in parts:
        assert np.mean(part.targets) == pytest.approx(table[:, 1].mean(), abs=0.01)
    rows = [int(part.name(i)[len(str(path)) + 1 : -1]) for part in parts for i in range(len(part))]
    assert sorted(rows) == list(range(400))

    learnt = table[rows[:280]][:, [0, 2, 3]]
    scaled = (table[:, [0, 2, 3]] - learnt.mean(0)) / [*learnt.std(0)[:2], 1]
    read = [part.read(i) for part in parts for i in range(len(part))]
    for row, (values, target) in zip(rows, read, strict=True):
        assert isinstance(values, torch.Tensor)
        assert values.shape == (3, 1, 1)
        np.testing.assert_allclose(values.flatten().numpy(), scaled[row], rtol=1e-5, atol=1e-6)
        assert target == table[row, 1]


def test_parquet_holds_the_same_rows(tmp_path: Path, table: np.ndarray) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = dict(zip(COLUMNS, table.T, strict=True))
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    write(tmp_path / "rows.csv", table)
    files = [tmp_path / f"rows.{kind}" for kind in ("csv", "parquet")]
    one, other = (Table(path=file, features=3).open(0).train for file in files)
    assert all(torch.equal(one.read(i)[0], other.read(i)[0]) for i in range(len(one)))  # pyright: ignore


def test_the_environment_names_the_folder(
    tmp_path: Path, table: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TABULAR_DATA_DIR", raising=False)
    with pytest.raises(DataError, match="set TABULAR_DATA_DIR"):
        Higgs().open(0)
    write(tmp_path / "higgs.csv", table)
    monkeypatch.setenv("TABULAR_DATA_DIR", str(tmp_path))
    assert len(Higgs(features=3).open(0).train) == 280


@pytest.mark.parametrize(
    ("keys", "change", "message"),
    [
        ({"features": 4}, None, r"has 3 columns besides 'target'; set data.features"),
        ({"target": "label"}, None, r"has no column 'label'; set data.target to one of mass"),
        ({}, "gap", r"row 18 has no number in column 'angle, squared', and 0 others"),
        ({}, "word", r"rows.csv: can't be read as a table of numbers"),
        ({}, "few", r"can't be split into 70/15/15 %"),
        ({}, "two", r"needs one table \(.csv or .parquet\), has other.csv, rows.csv"),
        ({}, "gone", r"no such file"),
    ],
)
def test_what_is_wrong_is_named(
    keys: dict[str, object], change: str | None, message: str, tmp_path: Path, table: np.ndarray
) -> None:
    if change == "gap":
        table[17, 2] = np.nan
    path = write(tmp_path / "rows.csv", table[:3] if change == "few" else table)
    if change == "word":
        path.write_text(path.read_text() + "1,2,three,4\n")
    if change == "two":
        write(tmp_path / "other.csv", table)
    folder = tmp_path / "nowhere" if change == "gone" else tmp_path
    config = load(Data, {"kind": "table", "path": str(folder), "features": 3, **keys})
    with pytest.raises(DataError, match=message):
        config.open(0)


def test_the_mlp_of_the_paper_learns_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(600, 24))
    target = (values[:, 0] + values[:, 1] > 0).astype(float)
    names = [f"x{i}" for i in range(24)] + ["target"]
    path = write(tmp_path / "higgs.csv", np.column_stack([values, target]), names)
    sparse = {"sparsity": "dst", "sparsity__every": 20, "sparsity__density": 0.5}
    short = {"epochs": 4, "evaluate__every": 4, "batch": 32, "log__tensorboard": False}
    run = configured(higgs(), tmp_path, data__path=str(path), optim__lr=0.1, **sparse, **short)
    assert train_here(run, tmp_path)["eval_top1"] > 0.75
