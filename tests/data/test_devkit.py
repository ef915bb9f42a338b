"""ImageNet's archives as they are downloaded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from graftwerk.config import load
from graftwerk.data.config import Data
from graftwerk.data.devkit import ARCHIVE, KIT, SYNSETS, TRUTH
from graftwerk.data.source import Splits
from graftwerk.errors import DataError
from trees import jpeg, tar_bytes

FOLDERS = ("n03", "n01", "n02")
"""In the order of their numbers in the kit, which is not that of their names."""
VAL = (2, 1, 3, 2)
"""The class numbers of the validation images."""


def synsets() -> bytes:
    kinds: Any = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(n, name, f"a thing, {n}", 0) for n, name in enumerate(FOLDERS, start=1)]
    rows.append((4, "n00", "all things", 3))
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    return buffer.getvalue()


@pytest.fixture
def downloads(tmp_path: Path, rng: np.random.Generator) -> Path:
    inner = {
        f"{name}.tar": tar_bytes([(f"{name}_{n}.JPEG", jpeg(rng)) for n in range(3)])
        for name in FOLDERS
    }
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(inner.items()))
    val = [(f"ILSVRC2012_val_{n:08}.JPEG", jpeg(rng)) for n in range(1, len(VAL) + 1)]
    (tmp_path / ARCHIVE).write_bytes(tar_bytes(val))
    truth = "".join(f"{number}\n" for number in VAL).encode()
    write_kit(tmp_path, [(SYNSETS, synsets()), (TRUTH, truth)])
    return tmp_path


def write_kit(folder: Path, files: list[tuple[str, bytes]]) -> None:
    import gzip

    (folder / KIT).write_bytes(gzip.compress(tar_bytes(files)))


def opened(path: Path) -> Splits:
    return load(Data, {"kind": "tar", "path": path}).open(0)


def test_validation_images_take_their_classes_from_the_kit(downloads: Path):
    splits = opened(downloads)
    assert splits.classes == ("n01", "n02", "n03")
    assert splits.train.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    told = [(splits.val.name(i).split(" ")[1], splits.val.read(i)[1]) for i in range(4)]
    assert told == [
        ("n01/ILSVRC2012_val_00000001.JPEG", 0),
        ("n01/ILSVRC2012_val_00000004.JPEG", 0),
        ("n02/ILSVRC2012_val_00000003.JPEG", 1),
        ("n03/ILSVRC2012_val_00000002.JPEG", 2),
    ]


def test_a_missing_kit_is_asked_for(downloads: Path):
    (downloads / KIT).unlink()
    with pytest.raises(DataError, match=f"{ARCHIVE}: its images have no classes; put {KIT}"):
        opened(downloads)


def test_a_kit_of_too_few_images_is_refused(downloads: Path):
    write_kit(downloads, [(SYNSETS, synsets()), (TRUTH, b"2\n1\n3\n")])
    with pytest.raises(DataError, match="tells the classes of 3 images, not of 4"):
        opened(downloads)


@pytest.mark.parametrize("truth", [b"2\n1\n3\n9\n", b"two"])
def test_a_damaged_kit_is_refused(downloads: Path, truth: bytes):
    write_kit(downloads, [(SYNSETS, synsets()), (TRUTH, truth)])
    with pytest.raises(DataError, match=f"{KIT}: is no intact development kit"):
        opened(downloads)
    (downloads / KIT).write_bytes(b"cut off")
    with pytest.raises(DataError, match=f"{KIT}: is no intact development kit"):
        opened(downloads)
