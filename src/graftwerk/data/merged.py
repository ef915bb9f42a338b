"""Several data sets as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from graftwerk.data.names import natural_key
from graftwerk.data.source import Raw, Source, Splits
from graftwerk.errors import DataError


@dataclass(frozen=True)
class MergedSource:
    """The images of `parts` one after the other, with the class numbers `targets` [n]."""

    parts: tuple[Source, ...]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> tuple[Raw, int]:
        part, position = self._place(index)
        return part.read(position)[0], int(self.targets[index])

    def name(self, index: int) -> str:
        part, position = self._place(index)
        return part.name(position)

    def _place(self, index: int) -> tuple[Source, int]:
        ends = list(accumulate(map(len, self.parts)))
        number = int(np.searchsorted(ends, index, side="right"))
        return self.parts[number], index - (ends[number - 1] if number else 0)


def merged(found: Sequence[Splits]) -> Splits:
    """All classes by name, in natural order; a class of several data sets has all their images.

    Raises:
        DataError: some have labels and some have none.
    """
    if len({bool(splits.classes) for splits in found}) > 1:
        unlabelled = next(splits for splits in found if not splits.classes)
        raise DataError(
            f"{unlabelled.train.name(0)}: has no class, and other parts of data.parts have; "
            "merge data sets with labels or data sets without"
        )
    names = {name for splits in found for name in splits.classes}
    classes = tuple(sorted(names, key=lambda name: (natural_key(name), name)))
    numbers = {name: number for number, name in enumerate(classes)}
    train, val = (
        MergedSource(
            tuple(source for source, _ in sources),
            np.concatenate([_renumbered(source, own, numbers) for source, own in sources]),
        )
        for sources in (
            [(splits.train, splits.classes) for splits in found],
            [(splits.val, splits.classes) for splits in found],
        )
    )
    return Splits(train, val, classes)


def _renumbered(source: Source, own: Sequence[str], numbers: dict[str, int]) -> np.ndarray:
    if not own:
        return source.targets
    return np.array([numbers[name] for name in own])[source.targets]
