from __future__ import annotations

import json
from pathlib import Path

import pytest

from doubles import tiny
from graftwerk.pipeline import Pipeline
from graftwerk.report import report, seconds
from running import configured, train_here


def test_seconds_of_all_attempts() -> None:
    events = [("started", 10.0), (None, 14.0), ("resumed", 100.0), (None, 101.5), ("closed", 102.0)]
    assert seconds({"event": event, "time": time} for event, time in events) == 6.0
    assert seconds([]) == 0


def test_a_table_of_what_there_is(tmp_path: Path) -> None:
    run = configured(tiny(), tmp_path, steps=2, evaluate__every=1, ema=None)
    pipeline = Pipeline({"one": run, "two": run.model_copy(update={"seed": 1})})
    scores = train_here(run, tmp_path)
    facts = json.loads(report(pipeline, as_json=True))
    one, two = facts["runs"]
    assert one["state"] == "finished"
    assert one["top1"] == scores["eval_top1"]
    assert 0 < one["device_hours"] == pytest.approx(facts["device_hours"])
    assert two == {"run": "two", "state": "to do", "top1": None, "device_hours": 0}
    assert "end to end" not in report(pipeline, as_json=False)
