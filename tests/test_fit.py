"""A checkpoint of another model is refused before anything is loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from doubles import tiny
from graftwerk.axes import World
from graftwerk.errors import CheckpointError
from graftwerk.parts import Parts
from running import configured, differences

State = dict[str, Any]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return configured(tiny(), tmp_path_factory.mktemp("runs")).build(World())


def another_shape(state: State) -> None:
    state["objective"]["net.head.fc.bias"] = torch.zeros(7)


def a_tensor_less(state: State) -> None:
    del state["objective"]["net.head.fc.weight"]


def a_tensor_more(state: State) -> None:
    state["objective"]["net.extra"] = torch.zeros(2, 3)


def without_average(state: State) -> None:
    state["ema"] = None


def other_groups(state: State) -> None:
    state["optimizer"]["param_groups"][0]["params"].pop()


def no_optimizer(state: State) -> None:
    state["optimizer"] = [1, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_shape, r"objective\.net\.head\.fc\.bias: 7 instead of 10"),
        (a_tensor_less, r"objective\.net\.head\.fc\.weight: nothing instead of 10×"),
        (a_tensor_more, r"objective\.net\.extra: 2×3 instead of nothing"),
        (without_average, "ema: not saved"),
        (other_groups, "optimizer: groups of"),
        (no_optimizer, "optimizer: groups of None"),
    ],
)
def test_another_models_state_is_named_and_nothing_is_loaded(
    parts: Parts, change: Callable[[State], None], said: str
) -> None:
    before = copy.deepcopy(parts.state_dict())
    state = copy.deepcopy(before)
    for tensor in state["objective"].values():
        tensor.zero_()
    change(state)
    with pytest.raises(CheckpointError, match=said):
        parts.load_state_dict(state)
    assert differences(parts.state_dict(), before) == []


def test_its_own_state_fits(parts: Parts) -> None:
    before = copy.deepcopy(parts.state_dict())
    parts.load_state_dict(copy.deepcopy(before))
    assert differences(parts.state_dict(), before) == []
