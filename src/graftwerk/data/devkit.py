"""ImageNet's validation images as they are distributed: one archive without folders.

Their classes are in the development kit, the archive ILSVRC2012_devkit_t12.tar.gz of the same
download page: line n of its ground truth is the number of the class of validation image n.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path

from graftwerk.data import tar
from graftwerk.errors import DataError

ARCHIVE, KIT = "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
IMAGE = re.compile(rb"ILSVRC2012_val_(\d{8})\.JPEG")
DATA = "ILSVRC2012_devkit_t12/data"
SYNSETS = f"{DATA}/meta.mat"
TRUTH = f"{DATA}/ILSVRC2012_validation_ground_truth.txt"


def members(archive: Path) -> Iterator[tar.Member]:
    """Those of a tar archive; validation images that lie in no folder get the one of their class.

    Raises:
        DataError: such images, and no intact kit beside the archive.
    """
    for path, offset, size in tar.members(archive):
        image = IMAGE.fullmatch(path)
        if image is None:
            yield path, offset, size
        else:
            yield _class(archive, int(image[1])) + b"/" + path, offset, size


def _class(archive: Path, number: int) -> bytes:
    kit = archive.with_name(KIT)
    if not kit.exists():
        raise DataError(
            f"{archive}: its images have no classes; put {KIT} beside it, of the same download "
            "page, or the images into folders named after their classes"
        )
    classes = _classes(kit)
    if not 1 <= number <= len(classes):
        raise DataError(f"{kit}: tells the classes of {len(classes):,} images, not of {number:,}")
    return classes[number - 1]


@cache
def _classes(kit: Path) -> list[bytes]:
    """The folder of each validation image, such as ``n01440764``."""
    from scipy.io import loadmat

    try:
        with tarfile.open(kit) as opened:
            synsets = loadmat(BytesIO(_content(opened, SYNSETS)), squeeze_me=True)["synsets"]
            truth = [int(line) for line in _content(opened, TRUTH).split()]
        numbers: list[int] = synsets["ILSVRC2012_ID"].tolist()
        folders: list[str] = synsets["WNID"].tolist()
        folder_of = dict(zip(numbers, map(os.fsencode, folders), strict=True))
        return [folder_of[number] for number in truth]
    except Exception as error:  # scipy's reader raises all sorts of exceptions on broken files
        raise DataError(f"{kit}: is no intact development kit ({error}); get it again") from None


def _content(opened: tarfile.TarFile, name: str) -> bytes:
    file = opened.extractfile(name)
    assert file is not None
    return file.read()
