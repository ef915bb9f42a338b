from __future__ import annotations

import pytest

from graftwerk.data.turns import Steps, at_once, in_turns

Log = list[tuple[str, int]]


def counted(name: str, steps: int, log: Log) -> Steps[str]:
    for number in range(steps):
        log.append((name, number))
        yield
    return name.upper()


def test_the_first_steps_come_first():
    log: Log = []
    assert in_turns([counted("a", 2, log), counted("b", 0, log), counted("c", 3, log)]) == [
        "A",
        "B",
        "C",
    ]
    assert log == [("a", 0), ("c", 0), ("a", 1), ("c", 1), ("c", 2)]
    assert in_turns([]) == []


def test_at_once_gives_the_result_or_the_exception():
    assert at_once(counted("a", 2, [])) == "A"

    def failing() -> Steps[None]:
        yield
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        at_once(failing())
