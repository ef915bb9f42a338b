from __future__ import annotations

import time

import pytest

from graftwerk.saving import SaveInterval


@pytest.mark.parametrize(
    ("every", "due"),
    [("4 steps", [4, 8, 12]), ("1 epoch", [5, 10]), ("0.5 epochs", [2, 4, 6, 8, 10, 12])],
)
def test_steps_and_epochs(every: str, due: list[int]) -> None:
    interval = SaveInterval(every, steps_per_epoch=5)
    assert [done for done in range(1, 13) if interval.at_step(done)] == due
    assert not interval.by_clock()


def test_minutes_count_from_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    interval = SaveInterval("2 minutes", steps_per_epoch=5)
    now += 119
    assert not interval.by_clock()
    now += 1
    assert interval.by_clock()
    assert not any(interval.at_step(done) for done in range(1, 13))
    interval.restart()
    assert not interval.by_clock()
