"""Differences of states, to the last bit and with their place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from graftwerk.verify.compare import differences, digest, tensor_difference


def state() -> dict[str, Any]:
    return {
        "net": {"weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(7)},
        "names": ["a", "b"],
        "scores": {"top1": 0.5, "loss": float("nan")},
        "best": None,
    }


def test_copies_are_equal() -> None:
    one, other = state(), copy.deepcopy(state())
    assert differences(one, other) == []
    assert digest(one) == digest(other)


def change(where: str) -> dict[str, Any]:
    changed = state()
    match where:
        case "net.weight":
            changed["net"]["weight"][1, 2] = 5.5
        case "net.steps":
            changed["net"]["steps"] = torch.tensor(8)
        case "names[1]":
            changed["names"][1] = "c"
        case "scores.top1":
            changed["scores"]["top1"] = 0.5000000001
        case "best":
            changed["best"] = 0.5
        case "net.more":
            changed["net"]["more"] = 1
        case _:
            raise ValueError(where)
    return changed


@pytest.mark.parametrize(
    "where", ["net.weight", "net.steps", "names[1]", "scores.top1", "best", "net.more"]
)
def test_a_change_is_found_where_it_is(where: str) -> None:
    one, other = state(), change(where)
    assert [difference.where for difference in differences(one, other)] == [where]
    assert digest(one) != digest(other)


def test_tensors_say_where_and_by_how_much() -> None:
    one = torch.zeros(4, 5)
    other = one.clone()
    other[1, 3], other[2, 0] = 0.25, -0.5
    assert tensor_difference(one, other) == (
        "0, and 0.25 at [1, 3]; 2 of 20 elements differ, by at most 0.5"
    )
    assert tensor_difference(one, one.double()) == "float32 [4, 5], and float64 [4, 5]"
    assert tensor_difference(one, one[:3]) == "float32 [4, 5], and float32 [3, 5]"


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), True),
        (torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(1.0, dtype=torch.bfloat16), True),
        (torch.empty(0, 3), torch.empty(0, 3), True),
        (torch.tensor([True, False]), torch.tensor([True, True]), False),
    ],
)
def test_bits_count_not_values(one: torch.Tensor, other: torch.Tensor, equal: bool) -> None:
    assert (tensor_difference(one, other) is None) == equal


def test_lists_of_other_lengths() -> None:
    (difference,) = differences([1, 2], [1, 2, 3], "steps")
    assert str(difference) == "steps: 2 entries, and 3"
