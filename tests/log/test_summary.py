from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import graftwerk
from graftwerk.log.console import WARNINGS
from graftwerk.log.metrics_csv import MetricsCsv
from graftwerk.log.summary import FAULTS, SummaryFile, summarize


def write_log(folder: Path, *lines: dict[str, Any]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(f'{text}{{"torn')


def event(time: float, name: str, **facts: Any) -> dict[str, Any]:
    return {"time": time, "kind": "event", "event": name, **facts}


def train(time: float, step: int, speed: float) -> dict[str, Any]:
    return {"time": time, "kind": "train", "step": step, "images_per_second": speed}


def test_a_run_that_was_interrupted(tmp_path: Path) -> None:
    write_log(
        tmp_path,
        event(1000, "started", step=0),
        train(1010, 10, 50.0),
        event(1020, "saved"),
        event(9000, "resumed", step=10),  # the hours between two starts don't count
        train(9005, 15, 70.0),
        train(9007, 20, 60.0),
        event(9008, "image_skipped", reason="a.jpg"),
        event(9009, "image_skipped", reason="b.jpg"),
        event(9010, "saved"),
    )
    table = MetricsCsv(tmp_path, 0)
    table.row(10, 1, {"train_loss": 0.5, "eval_top1": 0.975, "lr": 0.1})
    table.row(20, 2, {"train_loss": 0.4, "eval_top1": 0.95, "lr": 0.0})
    (tmp_path / "curves.png").write_bytes(b"")
    summary = summarize(tmp_path)
    assert (summary.seconds, summary.starts) == (30, 2)
    assert summary.images_per_second == 60.0
    assert (summary.events["saved"], summary.events["image_skipped"]) == (2, 2)
    text = "\n".join(summary.lines())
    assert f"{tmp_path.name} finished" in text
    assert "best    eval_top1 97.50 % after epoch 1" in text
    assert "last    train_loss 0.4, eval_top1 95.00 %, lr 0 after epoch 2" in text
    assert "time    0:00:30 in 2 starts, 60 images/s" in text
    assert "events  2 saved, 1 resumed, 2 image skipped" in text
    assert f"files   {tmp_path}: metrics.csv, curves.png, log.jsonl" in text
    assert "checkpoints" not in text
    assert text.endswith("  image skipped (2)\n    a.jpg\n    b.jpg")


def test_a_run_without_scores(tmp_path: Path) -> None:
    write_log(tmp_path, event(1, "started", step=0))
    text = "\n".join(summarize(tmp_path).lines())
    assert "best" not in text
    assert "last" not in text


def test_a_folder_that_holds_nothing_yet(tmp_path: Path) -> None:
    summary = summarize(tmp_path)
    assert (summary.best, summary.last, summary.seconds, summary.starts) == (None, None, 0, 0)
    assert summary.lines()


def test_faults_are_counted_and_told(tmp_path: Path) -> None:
    skips = [
        event(10 + step, "step_skipped", step=step, rank=1, reason="the loss is nan", images=[7])
        for step in range(1, 8)
    ]
    reason = "2 steps in a row\nwere not finite"
    write_log(
        tmp_path, event(1, "started", step=0), *skips, event(30, "rollback", step=7, reason=reason)
    )
    lines = summarize(tmp_path).lines()
    first = lines.index("  step skipped (7)")
    assert lines[first + 1] == "    step 1, rank 1: the loss is nan"
    assert lines[first + 6] == "    and 2 more in log.jsonl"
    assert lines[-2:] == ["  rollback (1)", "    step 7: 2 steps in a row were not finite"]
    SummaryFile(tmp_path).close("StoppedError: …")
    assert not (tmp_path / "summary.txt").exists()
    SummaryFile(tmp_path).close("finished")
    assert (tmp_path / "summary.txt").read_text().splitlines() == lines


def test_every_fault_and_warning_is_an_event_that_runs_write() -> None:
    package = Path(graftwerk.__file__).parent
    readers = ("summary.py", "console.py")
    files = [file for file in package.rglob("*.py") if file.name not in readers]
    written = "".join(file.read_text() for file in files)
    assert [name for name in {*FAULTS, *WARNINGS} if f'"{name}"' not in written] == []


def test_a_save_that_failed_is_told(tmp_path: Path) -> None:
    failed = event(2, "save_failed", step=4, reason="no space left")
    write_log(tmp_path, event(1, "started", step=0), failed)
    assert summarize(tmp_path).lines()[-2:] == ["  save failed (1)", "    step 4: no space left"]
