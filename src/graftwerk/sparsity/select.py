"""Exactly so many of the lowest scores; ties go to the lower index, on every device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SAMPLED, MARGIN = 256, 100
"""One of so many scores is looked at first; ranks in the sample are trusted to so many places."""


def lowest(scores: Tensor, count: int) -> Tensor:
    """True at the `count` lowest of `scores`; equal scores are taken in the order of index."""
    return lowest_among(scores, torch.ones_like(scores, dtype=torch.bool), count)


def lowest_among(
    scores: Tensor, candidates: Tensor, count: int, *, highest: bool = False
) -> Tensor:
    """True at the `count` lowest (or highest) scores of the candidates; all have one shape.

    Nothing is sorted: a selection finds the threshold, and only the ties at it are counted. Scores
    are finite.
    """
    if count <= 0:
        return torch.zeros_like(candidates)
    flat = scores.flatten()
    near = _near(flat, candidates.flatten(), count, highest)
    if count < len(near):
        values = flat.index_select(0, near)
        values = -values if highest else values
        threshold = _smallest(values, count)
        chosen, ties = values < threshold, places(values == threshold)
        chosen[ties[: count - number(chosen)]] = True
        near = near.index_select(0, places(chosen))
    found = torch.zeros_like(candidates, memory_format=torch.contiguous_format)
    found.view(-1).index_fill_(0, near, True)
    return found


def _near(scores: Tensor, candidates: Tensor, count: int, highest: bool) -> Tensor:
    """Places, in ascending order, of candidates with the `count` lowest ones among them.

    Where `count` is a small part of them, a sample shows from where on scores are too high.
    """
    sample = scores[::SAMPLED][candidates[::SAMPLED]]
    place = count // SAMPLED + MARGIN
    if place < len(sample) // 2:
        bound = _select(-sample if highest else sample, place)
        near = (scores >= -bound if highest else scores <= bound) & candidates
        if number(near) >= count:
            return places(near)
    return places(candidates)


def _smallest(values: Tensor, place: int) -> float:
    """The value at `place`, counted from 1, in ascending order.

    As Floyd and Rivest (1975) select: between two bounds from a sample there is little to look at.
    """
    sample = values[::SAMPLED]
    about = round(place / len(values) * len(sample))
    if len(sample) > 4 * MARGIN:
        low = _select(sample, max(1, about - MARGIN))
        high = _select(sample, min(len(sample), about + MARGIN))
        below = number(values < low)
        middle = values.index_select(0, places((values >= low) & (values <= high)))
        if below < place <= below + len(middle):
            return _select(middle, place - below)
    return _select(values, place)


def _select(values: Tensor, place: int) -> float:
    if values.is_cuda:
        return values.topk(place, largest=False, sorted=False).values.max().item()
    return float(np.partition(values.numpy(), place - 1)[place - 1])


def number(mask: Tensor) -> int:
    """How many are True."""
    return int(np.count_nonzero(mask.numpy()) if mask.is_cpu else torch.count_nonzero(mask))


def places(mask: Tensor) -> Tensor:
    """Where a vector is True, in ascending order. [n]"""
    if mask.is_cpu:
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


def bits(mask: Tensor) -> Tensor:
    """[⌈n/8⌉] bytes on the CPU, the first of n places in the highest bit."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def ones(packed: Tensor) -> int:
    """How many bits are 1."""
    return int(np.count_nonzero(np.unpackbits(packed.numpy())))


def lowest_per_group(scores_gm: Tensor, candidates_gm: Tensor, count_g: Tensor) -> Tensor:
    """In each of g groups, True at as many of its lowest candidates as `count_g` says."""
    ranked = scores_gm.masked_fill(~candidates_gm, torch.inf)
    order = ranked.argsort(dim=1, stable=True)
    places = torch.arange(scores_gm.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return (rank < count_g[:, None]) & candidates_gm


def split(total: int, shares: list[float], limits: list[int]) -> list[int]:
    """`total` in whole numbers proportional to `shares`, none above its limit, summing to `total`.

    What a limit cuts off is shared by the others in the same proportion, or by their room where
    none of them has a share. Remainders go to the largest, ties to the first.
    """
    counts = [0] * len(shares)
    left = min(total, sum(limits))
    while left > 0:
        room = [limit - count for limit, count in zip(limits, counts, strict=True)]
        weights = [share if free > 0 else 0.0 for share, free in zip(shares, room, strict=True)]
        if not sum(weights) > 0:
            weights = [float(free) for free in room]
        exact = [round(left * weight / sum(weights), 9) for weight in weights]
        full = [i for i, value in enumerate(exact) if 0 < room[i] <= value]
        for i in full or range(len(counts)):
            counts[i] += min(room[i], int(exact[i]))
        left = min(total, sum(limits)) - sum(counts)
        if not full:
            largest = sorted(range(len(exact)), key=lambda i: int(exact[i]) - exact[i])
            for i in largest[:left]:
                counts[i] += 1
            return counts
    return counts
