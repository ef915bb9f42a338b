"""Which images made which steps of a run, in 64 bits."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from graftwerk.axes import World
from graftwerk.distributed import gather

BITS = 2**64


def fingerprint(step: int, indices: np.ndarray) -> int:
    """The sum of ``hash(step, index)`` over the images [n] of a step, modulo 2^64.

    The hash is SplitMix64 (Steele et al. 2014). A sum does not depend on how ranks and
    micro-batches share a step; an image that is missing, repeated or in another step changes it,
    but for one case in 2^64.
    """
    start = _mixed(np.array([step], dtype=np.uint64))
    return int(_mixed(start ^ indices.astype(np.uint64)).sum(dtype=np.uint64))


def _mixed(words: np.ndarray) -> np.ndarray:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class Samples:
    """The fingerprint of all steps of a run, over all ranks; carried by its checkpoints."""

    def __init__(self) -> None:
        self._saved = 0
        """Of the steps up to the last checkpoint; the same on every rank."""
        self._own = 0
        """Of this rank's part of the steps since."""
        self._drawn: list[Tensor] = []

    def draw(self, indices: Tensor) -> None:
        """The images [n] of a micro-batch of the step that comes next."""
        self._drawn.append(indices)

    def count(self, step: int) -> None:
        """A step was made of what was drawn."""
        drawn, self._drawn = self._drawn, []
        if drawn:
            indices = np.concatenate([indices.numpy() for indices in drawn])
            self._own = (self._own + fingerprint(step, indices)) % BITS

    def total(self, world: World) -> str:
        """Of all ranks, in hexadecimal digits. A call of all ranks together."""
        self._saved = (self._saved + sum(gather(world, self._own))) % BITS
        self._own = 0
        return self.state

    @property
    def state(self) -> str:
        """Up to the last checkpoint."""
        return f"{self._saved:016x}"

    def load(self, state: str) -> None:
        """Go on from a checkpoint; what came after it in this process does not count."""
        self._saved, self._own = int(state, 16), 0
        self._drawn.clear()
