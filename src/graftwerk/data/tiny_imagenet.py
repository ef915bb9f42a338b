"""Tiny-ImageNet as it is published: 200 classes of 500 images of 64×64, 50 of each to validate on.

``train/CLASS/images/*.JPEG``, and ``val/images/*.JPEG`` with their classes in
``val/val_annotations.txt``. The images of ``test/`` have no labels.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from graftwerk.data.folder import FolderSource, list_images, open_folder
from graftwerk.data.source import Part, Splits, stratified_split
from graftwerk.errors import DataError

ANNOTATIONS = Path("val", "val_annotations.txt")


def open_tiny_imagenet(path: Path, holdout: float = 0.0) -> Splits:
    """The data set in its published layout, or with `val` sorted into class folders.

    With `holdout`, so large a share of each class's training images is the validation split, always
    the same, and the published one is left alone. Raises DataError naming the folder, file or line
    that is wrong.
    """
    splits = _published(path.expanduser())
    if not holdout:
        return splits
    kept, held_out = stratified_split(splits.train.targets, holdout, seed=0)
    return replace(splits, train=Part(splits.train, kept), val=Part(splits.train, held_out))


def _published(path: Path) -> Splits:
    if not (path / ANNOTATIONS).exists():
        return open_folder(path, holdout=0.1, seed=0)
    tree = list_images(path / "train")
    if problems := tree.problems():
        raise DataError("\n".join(problems))
    classes = tuple(tree.classes)
    return Splits(tree.source(classes), _validation(path, classes), classes)


def _validation(path: Path, classes: tuple[str, ...]) -> FolderSource:
    """Each line holds a file, its class and a box, between tabs."""
    numbers = {name: number for number, name in enumerate(classes)}
    files: list[bytes] = []
    targets: list[int] = []
    for line, text in enumerate((path / ANNOTATIONS).read_text().splitlines(), start=1):
        file, _, rest = text.partition("\t")
        name = rest.partition("\t")[0]
        if name not in numbers:
            raise DataError(f"{path / ANNOTATIONS}:{line}: train/ has no class {name!r}")
        files.append(os.fsencode(file))
        targets.append(numbers[name])
    source = FolderSource(
        path / "val" / "images", np.array(files, dtype=np.bytes_), np.array(targets)
    )
    lost = [file for file in map(source.path, range(len(source))) if not file.exists()]
    if lost:
        raise DataError(f"{lost[0]}: is listed in {ANNOTATIONS} and missing ({len(lost)} such)")
    return source
