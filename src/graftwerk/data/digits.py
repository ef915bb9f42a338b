"""scikit-learn's handwritten digits: real images that need no file and no network."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import distribution

import numpy as np
from PIL import Image

from graftwerk.data.source import Splits, stratified_split

FILE = "sklearn/datasets/data/digits.csv.gz"
"""64 pixels and a class in a row. Importing scikit-learn to read it takes two seconds."""
BRIGHTEST = 16
SPLIT_SEED = 0


@dataclass(frozen=True)
class DigitsSource:
    """A part of the 1,797 images. `positions` [n] are scikit-learn's numbers of them."""

    images_nhw: np.ndarray
    targets: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images_nhw[index]), int(self.targets[index])

    def name(self, index: int) -> str:
        return f"digits[{self.positions[index]}]"


def open_digits(holdout: float) -> Splits:
    """Grey 8x8 images, 0…16 scaled to 0…255; the same split whatever the run's seed."""
    table = np.loadtxt(str(distribution("scikit-learn").locate_file(FILE)), delimiter=",")
    images_nhw = np.rint(table[:, :-1] * (255 / BRIGHTEST)).astype(np.uint8).reshape(-1, 8, 8)
    targets = table[:, -1].astype(int)
    train, val = (
        DigitsSource(images_nhw[part], targets[part], part)
        for part in stratified_split(targets, holdout, SPLIT_SEED)
    )
    return Splits(train, val, tuple("0123456789"))
