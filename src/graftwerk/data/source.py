"""What every set of images looks like from outside, and how one is split in two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from PIL import Image

from graftwerk.data.order import permutation

if TYPE_CHECKING:
    from torch import Tensor

FRACTION = 1
"""Makes the choice of a fraction another one than that of a holdout."""


Raw: TypeAlias = "bytes | Image.Image | Tensor"
"""An image, encoded as in its file or decoded, or a row of a table as [c, 1, 1]."""


class Source(Protocol):
    """Labelled images by position. Pickled into loader processes, so it holds no open files."""

    @property
    def targets(self) -> np.ndarray:
        """The number of each image's class [n]; all 0 where nobody labelled them."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Raw, int]:
        """An image and the number of its class.

        Raises `DataError` naming the file where it can't be read.
        """
        ...

    def name(self, index: int) -> str:
        """What people know the image by: a file's path, or ``digits[17]``."""
        ...


@dataclass(frozen=True)
class Splits:
    """The images to learn from, those to be tested on, and the class names by number."""

    train: Source
    val: Source
    classes: tuple[str, ...]
    """Empty where the images have no labels."""


@dataclass(frozen=True)
class Part:
    """The images of `whole` at `positions` [n]."""

    whole: Source
    positions: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        return self.whole.targets[self.positions]

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, index: int) -> tuple[Raw, int]:
        return self.whole.read(int(self.positions[index]))

    def name(self, index: int) -> str:
        return self.whole.name(int(self.positions[index]))


def fraction(source: Source, share: float, seed: int) -> Part:
    """The share of each class's images, at least one of each, chosen by `seed`."""
    targets, chosen = source.targets, [np.empty(0, dtype=np.int64)]
    for number in np.unique(targets):
        (members,) = np.nonzero(targets == number)
        count = max(round(len(members) * share), 1)
        chosen.append(members[permutation(len(members), seed, int(number), FRACTION)[:count]])
    return Part(source, np.sort(np.concatenate(chosen)))


def stratified_split(
    targets: np.ndarray, holdout: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (kept, held out), ascending; each class gives the share `holdout` of its images.

    A class gives at least one image and keeps at least one, so it needs two. What it gives depends
    on its own images only: another class more or less changes nothing.
    """
    held: list[np.ndarray] = []
    for number in np.unique(targets):
        (members,) = np.nonzero(targets == number)
        count = min(max(round(len(members) * holdout), 1), len(members) - 1)
        held.append(members[permutation(len(members), seed, int(number))[:count]])
    held_out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(targets)), held_out), held_out
