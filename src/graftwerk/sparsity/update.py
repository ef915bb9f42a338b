"""Prune and grow as pure functions of scores: which units go, and which come.

All tensors are lists over layers of [g, m]: g groups of m units (`structure.py`). Scores of units
that can't be chosen don't matter. Counts are exact; ties go to the lower layer and index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from graftwerk.sparsity.select import lowest, lowest_among, lowest_per_group, number, split


def prune_count(rate: float, active: int) -> int:
    """⌈p · nnz⌉"""
    return min(active, math.ceil(rate * active - 1e-9))


def prune_layers(
    scores: Sequence[Tensor], active: Sequence[Tensor], counts: Sequence[int]
) -> list[Tensor]:
    """The `counts` lowest active units of each layer."""
    return [lowest_among(s, a, k) for s, a, k in zip(scores, active, counts, strict=True)]


def prune_globally(scores: Sequence[Tensor], active: Sequence[Tensor], count: int) -> list[Tensor]:
    """The `count` lowest active units of all layers; the best unit of each layer stays."""
    can_go = [a & ~_best(s, a) for s, a in zip(scores, active, strict=True)]
    return _choose_globally(scores, can_go, count)


def grow_layers(
    scores: Sequence[Tensor], free: Sequence[Tensor], counts: Sequence[int]
) -> list[Tensor]:
    """The `counts` highest free units of each layer."""
    return [
        lowest_among(s, f, k, highest=True) for s, f, k in zip(scores, free, counts, strict=True)
    ]


def grow_globally(scores: Sequence[Tensor], free: Sequence[Tensor], count: int) -> list[Tensor]:
    """The `count` highest free units of all layers."""
    return _choose_globally([-s for s in scores], free, count)


def grow_groups(
    scores: Sequence[Tensor], free: Sequence[Tensor], lost: Sequence[Tensor]
) -> list[Tensor]:
    """In each group as many of its highest free units as it lost."""
    return [
        lowest_per_group(-s, f, gone.sum(1)) for s, f, gone in zip(scores, free, lost, strict=True)
    ]


def redistribute(
    total: int, importance: Sequence[float], lost: Sequence[int], free: Sequence[int]
) -> list[int]:
    """`total` units shared between layers in proportion to `importance`, as room allows."""
    shares = list(importance) if any(value > 0 for value in importance) else [*map(float, lost)]
    return split(total, shares, list(free))


def jaccard(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """|P ∩ Q| / |P ∪ Q| of two choices, pooled over layers; 1 where both are empty."""
    common = sum(number(p & q) for p, q in zip(one, other, strict=True))
    either = sum(number(p | q) for p, q in zip(one, other, strict=True))
    return common / either if either else 1.0


def _best(scores: Tensor, active: Tensor) -> Tensor:
    return lowest_among(scores, active, 1, highest=True)


def _choose_globally(
    scores: Sequence[Tensor], candidates: Sequence[Tensor], count: int
) -> list[Tensor]:
    values = torch.cat([s[c] for s, c in zip(scores, candidates, strict=True)])
    parts = lowest(values, count).split([number(c) for c in candidates])
    chosen = [torch.zeros_like(c) for c in candidates]
    for where, candidate, part in zip(chosen, candidates, parts, strict=True):
        where[candidate] = part
    return chosen
