"""Tables of numbers, CSV or Parquet: a row is an example, a column a channel of one pixel."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from graftwerk.data.source import Splits
from graftwerk.errors import DataError

if TYPE_CHECKING:
    from graftwerk.data.config import Table

SUFFIXES = (".csv", ".parquet")
SPLIT_SEED = 42
"""That of the paper on dynamic sparse training, whatever the run's seed."""


@dataclass(frozen=True)
class TableSource:
    """The rows `positions` [n] of a table."""

    path: Path
    values_nc: np.ndarray
    """Standardised, float32."""
    targets: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, index: int) -> tuple[Tensor, int]:
        """A row as [c, 1, 1], and its class."""
        return torch.from_numpy(self.values_nc[index])[:, None, None], int(self.targets[index])

    def name(self, index: int) -> str:
        return f"{self.path}[{self.positions[index]}]"


def open_table(config: Table) -> Splits:
    """70 % of the rows to learn from and 15 % to validate on (or the other 15 %, to test on).

    Classes keep their shares in each part. Columns have mean 0 and variance 1 over the rows to
    learn from. Raises DataError naming the file, and the column or row that is wrong.
    """
    from sklearn.model_selection import train_test_split

    assert config.path is not None
    path = find_table(config.path)
    names, table = _read(path)
    values_nc, targets, classes = _columns(path, names, table, config)
    rows = np.arange(len(targets))
    try:
        train, rest = train_test_split(
            rows, test_size=0.3, stratify=targets, random_state=SPLIT_SEED
        )
        val, test = train_test_split(
            rest, test_size=0.5, stratify=targets[rest], random_state=SPLIT_SEED
        )
    except ValueError as error:
        raise DataError(f"{path}: can't be split into 70/15/15 % ({error})") from None
    mean, std = values_nc[train].mean(0), values_nc[train].std(0)
    values_nc = ((values_nc - mean) / np.where(std > 0, std, 1)).astype(np.float32)
    learnt, scored = (
        TableSource(path, values_nc[part], targets[part], part)
        for part in (np.sort(train), np.sort(test if config.test else val))
    )
    return Splits(learnt, scored, classes)


def find_table(path: Path) -> Path:
    """A file, or the only table in a folder."""
    path = path.expanduser()
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path}: no such file; set data.path to a table (CSV or Parquet)")
        return path
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataError(f"{path}: needs one table (.csv or .parquet), has {names}; set data.path")
    return found[0]


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    """Names of the columns, and numbers [rows, columns]; nan where there is none."""
    try:
        return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read as a table of numbers ({error})") from None


def _read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    with path.open(newline="") as file:
        names = [name.strip() for name in next(csv.reader(file), [])]
        table = np.loadtxt(file, delimiter=",", quotechar='"', ndmin=2, converters=_number)
    return names, table


def _number(text: str) -> float:
    return float(text) if text.strip() else float("nan")


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        import pyarrow as pa  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(f"{path}: needs pyarrow; pip install 'graftwerk[parquet]'") from None
    try:
        table = cast(Any, pq).read_table(path)
        columns = [np.asarray(column.to_numpy(), dtype=np.float64) for column in table.columns]
    except cast(Any, pa).ArrowException as error:
        raise ValueError(error) from None
    return list(table.column_names), np.stack(columns, axis=1)


def _columns(
    path: Path, names: list[str], table: np.ndarray, config: Table
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(numbers [n, c], classes [n], names of the classes)"""
    if config.target not in names:
        raise DataError(
            f"{path}: has no column {config.target!r}; set data.target to one of {', '.join(names)}"
        )
    if len(names) - 1 != config.features:
        raise DataError(
            f"{path}: has {len(names) - 1} columns besides {config.target!r}; "
            f"set data.features to it (got {config.features})"
        )
    missing = np.argwhere(~np.isfinite(table))
    if len(missing):
        row, column = missing[0]
        raise DataError(
            f"{path}: row {row + 1} has no number in column {names[column]!r}, and "
            f"{len(missing) - 1} others lack; fill them in or remove the rows"
        )
    place = names.index(config.target)
    numbers, targets = np.unique(table[:, place], return_inverse=True)
    values_nc = np.delete(table, place, axis=1)
    return values_nc, targets, tuple(f"{number:g}" for number in numbers)
