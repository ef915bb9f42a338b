"""Published data sets in the layouts they are published in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from graftwerk.config import load
from graftwerk.data.config import Data
from graftwerk.data.detect import kind_of
from graftwerk.data.folder import FolderSource, open_folder
from graftwerk.data.source import Splits
from graftwerk.errors import DataError


def open_preset(kind: str, path: Path, num_classes: int, holdout: float, seed: int) -> Splits:
    """What lies at `path`, in whatever format, if it has as many classes as `kind` has.

    Raises:
        DataError: it has another number of classes, or is damaged.
    """
    path = path.expanduser()
    found = kind_of(path)
    data = load(Data, {"kind": found, "path": path, "holdout": holdout})
    splits = data.find(seed)
    if len(splits.classes) != num_classes:
        raise DataError(
            f"{path}: {len(splits.classes):,} classes, and {kind} has {num_classes:,}; set "
            f"data={found} for a part of it, or another data.path"
        )
    return splits


def open_food101(path: Path) -> Splits:
    root = _root(path, ("food-101", "."), "meta")
    names = {
        split: [f"{line}.jpg" for line in _lines(root / "meta" / f"{split}.txt")]
        for split in ("train", "test")
    }
    return _listed(root / "images", names["train"], names["test"])


def open_dtd(path: Path, partition: int, held_out: str) -> Splits:
    root = _root(path, ("dtd/dtd", "dtd", "."), "labels")
    train, val = (
        _lines(root / "labels" / f"{split}{partition}.txt") for split in ("train", held_out)
    )
    return _listed(root / "images", train, val)


def open_eurosat(path: Path, holdout: float, seed: int) -> Splits:
    places = ("eurosat/2750", "2750", "EuroSAT_RGB", ".")
    return open_folder(_root(path, places, "AnnualCrop"), holdout, seed)


@dataclass(frozen=True)
class SvhnSource:
    """`images_hwcn` [32, 32, 3, n] as the file holds them; `targets` [n] are digits."""

    path: Path
    images_hwcn: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images_hwcn[..., index]), int(self.targets[index])

    def name(self, index: int) -> str:
        return f"{self.path}[{index}]"


def open_svhn(path: Path) -> Splits:
    path = path.expanduser()
    train, test = (_svhn(path / f"{split}_32x32.mat") for split in ("train", "test"))
    return Splits(train, test, tuple(map(str, range(10))))


def _svhn(path: Path) -> SvhnSource:
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            content: dict[str, Any] = loadmat(file)
        images_hwcn, digits = content["X"], content["y"].reshape(-1)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; set data.path to the folder of it") from None
    except Exception as error:  # scipy's reader raises all sorts of exceptions on broken files
        raise DataError(f"{path}: can't be read ({error}); get it again") from None
    if images_hwcn.shape != (32, 32, 3, len(digits)) or not set(digits) <= set(range(1, 11)):
        raise DataError(f"{path}: is not SVHN's cropped digits, but {images_hwcn.shape}")
    return SvhnSource(path, images_hwcn, (digits % 10).astype(np.int64))  # 10 stands for 0


def _root(path: Path, places: tuple[str, ...], sign: str) -> Path:
    """The first of the folders `places` below `path` in which `sign` lies."""
    path = path.expanduser()
    for place in places:
        if (path / place / sign).exists():
            return path / place
    shown = ", ".join(str(Path(place, sign)) for place in places)
    raise DataError(f"{path}: none of {shown} is there; set data.path to what was unpacked")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None


def _listed(folder: Path, train: list[str], val: list[str]) -> Splits:
    """The files that the lists name, as CLASS/FILE."""
    classes = sorted({name.split("/")[0] for name in train})
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = next((name for name in val if name.split("/")[0] not in numbers), None)
    if unknown is not None:
        raise DataError(f"{folder}: no training image has the class of {unknown}")
    sources: list[FolderSource] = []
    for names in (train, val):
        lost = [name for name in names if not (folder / name).exists()]
        if lost:
            raise DataError(f"{folder / lost[0]}: is listed and missing ({len(lost)} such)")
        targets = np.array([numbers[name.split("/")[0]] for name in names])
        files = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
        sources.append(FolderSource(folder, files, targets))
    return Splits(sources[0], sources[1], tuple(classes))
