"""When a training is disturbed, and how."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from graftwerk.errors import ConfigError
from graftwerk.verify.attempt import Follower
from graftwerk.verify.disturb import KINDS
from graftwerk.verify.resume import draw

NAMES = list(KINDS)


def test_moments_come_in_order_and_kinds_equally_often() -> None:
    seed = random.randrange(2**32)
    points = draw(random.Random(seed), 50, {"first": 10, "none": 0, "second": 30}, NAMES)
    runs = [point.run for point in points]
    assert runs == sorted(runs), f"seed {seed}"
    for name, steps in (("first", 10), ("second", 30)):
        own = [point.step for point in points if point.run == name]
        assert own == sorted(own), f"seed {seed}"
        assert all(1 <= step < steps for step in own), f"seed {seed}"
    assert Counter(point.kind for point in points) == dict.fromkeys(KINDS, 50 // len(KINDS))


def test_a_seed_repeats_its_moments_and_another_does_not() -> None:
    steps = {"run": 1000}
    points = [draw(random.Random(seed), 10, steps, NAMES) for seed in (1, 1, 2)]
    assert points[0] == points[1] != points[2]


def test_a_run_of_one_step_has_no_moment() -> None:
    with pytest.raises(ConfigError, match="fewer than two steps"):
        draw(random.Random(0), 3, {"run": 1}, NAMES)


def test_a_follower_sees_whole_new_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n')
    follower = Follower(path)
    assert follower.new() == []
    with path.open("a") as file:
        file.write('{"step": 2}\nno json\n{"step": 3')
        file.flush()
        assert follower.new() == [{"step": 2}]
        file.write("}\n")
    assert follower.new() == [{"step": 3}]
