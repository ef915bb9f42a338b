"""Whether all ranks have found the same images: else each would train on other ones, unnoticed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from graftwerk.axes import World
from graftwerk.data.source import Source, Splits
from graftwerk.distributed import gather
from graftwerk.errors import DataError

SAMPLED = 4096
"""Images of a split whose names are compared; of all, the classes are."""


@dataclass(frozen=True)
class Listing:
    """What a rank knows of the images of a split."""

    split: str
    positions: np.ndarray
    names: list[str]
    """Of the images at `positions`: folder and file alone, as copies lie in other places."""
    targets: str
    """The digest of all class numbers."""
    count: int

    @classmethod
    def of(cls, split: str, source: Source) -> Listing:
        count = len(source)
        positions = np.unique(np.linspace(0, max(count - 1, 0), min(SAMPLED, count), dtype=int))
        names = ["/".join(source.name(i).split("/")[-2:]) for i in positions.tolist()]
        targets = np.ascontiguousarray(source.targets, dtype=np.int64)
        return cls(split, positions, names, hashlib.sha256(targets.tobytes()).hexdigest(), count)

    @property
    def digest(self) -> str:
        told = "\n".join([self.split, str(self.count), self.targets, *self.names])
        return hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()

    def difference(self, other: Listing) -> str | None:
        """In what `other` differs, for people."""
        counts = f"{other.count:,} images to {self.split} on, not {self.count:,}"
        pairs = zip(self.positions.tolist(), self.names, other.names, strict=False)
        for position, mine, theirs in pairs:
            if mine != theirs:
                start = f"{counts}; " if self.count != other.count else ""
                return f"{start}image {position:,} is {theirs}, not {mine}"
        if self.count != other.count:
            return counts
        return "other classes for the same files" if self.targets != other.targets else None


def check_same_images(world: World, splits: Splits) -> None:
    """Called by all ranks together.

    Raises:
        DataError: on every rank, naming one that differs from rank 0 and its first difference.
    """
    if world.size == 1:
        return
    mine = [Listing.of("train", splits.train), Listing.of("validate", splits.val)]
    if len(set(gather(world, "".join(listing.digest for listing in mine)))) == 1:
        return
    first, *others = gather(world, mine)
    for rank, theirs in enumerate(others, start=1):
        for here, there in zip(first, theirs, strict=True):
            difference = here.difference(there)
            if difference is not None:
                raise DataError(
                    f"rank {rank} has found other images than rank 0: {difference}; "
                    "give all nodes the same data"
                )
