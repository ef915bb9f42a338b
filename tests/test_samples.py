"""The fingerprint of which images made which steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graftwerk.axes import World
from graftwerk.samples import Samples, fingerprint


def splitmix64(word: int) -> int:
    """As published, on Python's own whole numbers."""
    word = (word + 0x9E3779B97F4A7C15) % 2**64
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    word = ((word ^ word >> 27) * 0x94D049BB133111EB) % 2**64
    return word ^ word >> 31


def test_equals_the_sum_in_whole_numbers() -> None:
    rng = np.random.default_rng(seed := np.random.SeedSequence().entropy)
    step, indices = int(rng.integers(2**40)), rng.integers(2**31, size=500)
    start = splitmix64(step)
    wanted = sum(splitmix64(start ^ int(index)) for index in indices) % 2**64
    assert fingerprint(step, indices) == wanted, f"seed {seed}"


def of(*steps: list[list[int]]) -> str:
    """Of steps, each of which is micro-batches."""
    samples = Samples()
    for number, step in enumerate(steps):
        for micro in step:
            samples.draw(torch.tensor(micro))
        samples.count(number)
    return samples.total(World())


def test_does_not_depend_on_how_a_step_is_shared() -> None:
    assert of([[1, 2, 3, 4]], [[5]]) == of([[3], [2, 4, 1]], [[5]])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param([[[1, 2]], [[3]]], id="missing"),
        pytest.param([[[1, 2, 2]], [[3, 4]]], id="repeated"),
        pytest.param([[[1, 3]], [[2, 4]]], id="in-another-step"),
        pytest.param([[[3, 4]], [[1, 2]]], id="steps-exchanged"),
    ],
)
def test_what_changes_it(other: list[list[list[int]]]) -> None:
    assert of(*other) != of([[1, 2]], [[3, 4]])


def test_goes_on_from_what_was_saved() -> None:
    first, second = Samples(), Samples()
    for samples, steps in ((first, range(7)), (second, range(3))):
        for step in steps:
            samples.draw(torch.tensor([step, 8]))
            samples.count(step)
    second.total(World())
    third = Samples()
    third.load(second.state)
    for step in range(3, 7):
        third.draw(torch.tensor([step, 8]))
        third.count(step)
    assert third.total(World()) == first.total(World())
