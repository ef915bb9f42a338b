from __future__ import annotations

import pytest

from graftwerk.errors import ConfigError
from graftwerk.models.division import Divide, Division, hybrid, shape, written


def of(divide: Divide, *depths: int) -> Division:
    return Division.of(divide, depths, key="key")


@pytest.mark.parametrize(
    ("divide", "depths", "stages"),
    [
        ((3, 3, 3, 3), (12,), [[0], [0], [0], [0]]),
        ((3, 3, 9, 3), (3, 3, 9, 3), [[0], [1], [2], [3]]),
        ((3, 3, 9, 9, 9, 3), (3, 3, 27, 3), [[0], [1], [2], [2], [2], [3]]),
        (((3, 3), (9, 3)), (3, 3, 9, 3), [[0, 1], [2, 3]]),
        (((3, 3, 4), (5, 3)), (3, 3, 9, 3), [[0, 1, 2], [2, 3]]),
        ((5,), (5,), [[0]]),
    ],
)
def test_numbers_fill_the_stages_in_order(
    divide: Divide, depths: tuple[int, ...], stages: list[list[int]]
) -> None:
    division = of(divide, *depths)
    assert [[piece.stage for piece in module] for module in division.modules] == stages
    assert division.depths == depths


def test_every_block_has_one_owner() -> None:
    division = of(((3, 3, 4), (5, 3)), 3, 3, 9, 3)
    owners = [[division.owner(s, b) for b in range(d)] for s, d in enumerate(division.depths)]
    assert owners == [[0] * 3, [0] * 3, [0] * 4 + [1] * 5, [1] * 3]
    assert [division.start(1, stage) for stage in range(4)] == [3, 3, 4, 0]
    with pytest.raises(IndexError, match="stage 2 has no block 9"):
        division.owner(2, 9)


def test_a_meta_network_has_the_same_pieces() -> None:
    meta, divide = ((1, 2), 1, 1), ((3, 3), 9, 3)
    division = of(divide, 3, 3, 9, 3)
    assert division.like(meta).depths == (1, 2, 1, 1)
    assert division.like(hybrid(meta, divide, 0)).depths == (3, 3, 1, 1)
    assert division.like(hybrid(meta, divide, 1)).depths == (1, 2, 9, 1)
    assert shape(meta) == shape(divide) == [2, 1, 1]


@pytest.mark.parametrize(
    ("divide", "depths", "problem"),
    [
        ((3, 3, 3), (12,), r"\[3,3,3\] are 9 blocks in 3 modules, and the network has 12 blocks"),
        ((1,) * 13, (12,), r"are 13 blocks in 13 modules, and the network has 12 blocks"),
        ((3, 3, 3), (3, 3, 9, 3), r"has 18 blocks in 4 stages of 3, 3, 9, 3"),
        ((6, 9, 3), (3, 3, 9, 3), r"crosses the end of a stage; .* each stage, as \[\[3,3\],9,3\]"),
    ],
)
def test_divisions_that_do_not_fit_are_refused(
    divide: Divide, depths: tuple[int, ...], problem: str
) -> None:
    with pytest.raises(ConfigError, match="^key: " + r".*" + problem):
        of(divide, *depths)


def test_as_it_is_typed() -> None:
    assert written(((3, 3), 9, 3)) == "[[3,3],9,3]"
