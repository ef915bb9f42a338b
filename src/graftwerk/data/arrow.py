"""Hugging Face's data sets on disk: columns in Arrow's streaming format, mapped into memory.

``save_to_disk`` writes a folder per split with ``state.json``, which lists its files, and
``dataset_info.json``, which names the classes. Images are structs of their bytes and a path.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from graftwerk.data.folder import VAL_NAMES
from graftwerk.data.source import Part, Splits, stratified_split
from graftwerk.errors import DataError


@dataclass(frozen=True)
class ArrowSource:
    """The rows of one split; each process maps the files for itself when it first reads."""

    folder: Path
    column: str
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> tuple[bytes, int]:
        value: dict[str, Any] | None = _table(self.folder)[self.column][index].as_py()
        raw = value["bytes"] if value else None
        if raw is None:
            raise DataError(f"{self.name(index)}: holds no bytes; save the images themselves")
        return raw, int(self.targets[index])

    def name(self, index: int) -> str:
        return f"{self.folder}[{index}]"


def open_saved(path: Path, image: str, label: str, holdout: float, seed: int) -> Splits:
    """The images and labels of a folder by ``Dataset.save_to_disk`` or ``DatasetDict``'s.

    Raises:
        DataError: naming the folder, the column or the row that is wrong.
    """
    path = path.expanduser()
    if (path / "state.json").exists():
        source, classes = _opened(path, image, label)
        kept, held_out = stratified_split(source.targets, holdout, seed)
        return Splits(Part(source, kept), Part(source, held_out), classes)
    if not (path / "train" / "state.json").exists():
        raise DataError(
            f"{path}: neither state.json nor train/state.json is there; "
            "set data.path to a folder that Dataset.save_to_disk wrote"
        )
    train, classes = _opened(path / "train", image, label)
    val = next((name for name in VAL_NAMES if (path / name / "state.json").exists()), None)
    if val is None:
        kept, held_out = stratified_split(train.targets, holdout, seed)
        return Splits(Part(train, kept), Part(train, held_out), classes)
    held, others = _opened(path / val, image, label)
    if others != classes:
        raise DataError(f"{path / val}: its classes are not those of train")
    return Splits(train, held, classes)


def _opened(folder: Path, image: str, label: str) -> tuple[ArrowSource, tuple[str, ...]]:
    features = _json(folder / "dataset_info.json").get("features") or {}
    missing = [name for name in (image, label) if name not in features]
    if missing:
        raise DataError(
            f"{folder}: no column {', '.join(missing)}; set data.image and data.label to two of "
            f"{', '.join(features)}"
        )
    classes = features[label].get("names")
    if not classes:
        raise DataError(f"{folder}: the column {label} names no classes (ClassLabel)")
    targets = _table(folder)[label].to_numpy()
    wrong = np.flatnonzero(~((targets >= 0) & (targets < len(classes))))
    if len(wrong):
        row = wrong[0]
        raise DataError(f"{folder}[{row}]: label {targets[row]}, of {len(classes)} classes")
    return ArrowSource(folder, image, targets.astype(np.int64)), tuple(classes)


@lru_cache(maxsize=8)
def _table(folder: Path) -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise DataError(
            "data=huggingface needs the extra parquet: pip install 'graftwerk[parquet]'"
        ) from None
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: its rows are chosen by indices; save it after flatten_indices")
    files = [folder / file["filename"] for file in state["_data_files"]]
    try:
        return pa.concat_tables(pa.ipc.open_stream(pa.memory_map(str(f))).read_all() for f in files)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{folder}: can't be read ({error})") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read ({error})") from None
