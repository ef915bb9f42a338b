"""Seeds for `verify-resume` in tests."""

from __future__ import annotations

import random
from collections.abc import Iterable

from graftwerk.verify.resume import draw


def early_seed(kills: int, steps: int, kinds: Iterable[str]) -> int:
    """One whose disturbances leave a run of so many steps a third of them: none comes too late."""
    while True:
        seed = random.randrange(2**32)
        points = draw(random.Random(seed), kills, {"run": steps}, list(kinds))
        if max(point.step for point in points) <= 2 * steps // 3:
            return seed
