from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graftwerk.axes import World
from graftwerk.config import load
from graftwerk.data.agreement import Listing, check_same_images
from graftwerk.data.config import Data
from graftwerk.data.source import Splits
from graftwerk.errors import DataError
from trees import tree, write_files, write_tar
from workers import together


def folder(path: Path) -> Splits:
    return load(Data, {"kind": "folder", "path": path}).open(0)


def outcomes(size: int, found: list[Splits]) -> list[str | None]:
    def work(world: World) -> str | None:
        try:
            check_same_images(world, found[world.rank])
        except DataError as error:
            return str(error)
        return None

    return together(size, work)


def test_ranks_that_found_other_images_are_refused(tmp_path: Path, rng: np.random.Generator):
    files = tree(rng)
    less = {name: raw for name, raw in files.items() if name != "train/bird9/03.jpg"}
    splits = [
        folder(write_files(some, tmp_path / str(n))) for n, some in enumerate((files, files, less))
    ]
    assert outcomes(2, splits) == [None, None]
    told = outcomes(3, splits)
    assert told[0] is not None
    assert told[0].startswith(
        "rank 2 has found other images than rank 0: 14 images to train on, not 15; "
        "image 8 is bird9/04.jpg, not bird9/03.jpg; give all nodes"
    )
    assert told == [told[0]] * 3


def test_another_label_of_the_same_file_is_a_difference(tmp_path: Path, rng: np.random.Generator):
    splits = folder(write_files(tree(rng), tmp_path / "a"))
    one, other = (Listing.of("train", splits.train) for _ in range(2))
    assert one.difference(other) is None
    splits.train.targets[3] += 1
    changed = Listing.of("train", splits.train)
    assert one.difference(changed) == "other classes for the same files"
    assert one.digest != changed.digest


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_copies_in_other_places_are_the_same(tmp_path: Path, rng: np.random.Generator, kind: str):
    files = tree(rng)
    digests: set[str] = set()
    for place in ("here", "there"):
        path = (
            write_files(files, tmp_path / place)
            if kind == "folder"
            else write_tar(files, tmp_path / place / "a.tar")
        )
        digests.add(
            Listing.of("train", load(Data, {"kind": kind, "path": path}).open(0).train).digest
        )
    assert len(digests) == 1
