from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from graftwerk.errors import ConfigError
from graftwerk.log import jsonl, metrics_csv
from graftwerk.log.jsonl import JsonLines
from graftwerk.log.logbook import Logbook
from graftwerk.log.sink import Sink

Opener = Callable[..., Logbook]


def lines(folder: Path) -> list[dict[str, Any]]:
    return list(jsonl.read(folder / "run" / "log.jsonl"))


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in lines(folder) if line.get("event") == name]


class Recorder(Sink):
    """Remembers its calls; fails in those that are named."""

    def __init__(self, *failing: str, error: type[Exception] = ValueError) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._failing, self._error = failing, error

    def _call(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))
        if name in self._failing:
            raise self._error(name)

    def record(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        self._call("record", step, epoch, dict(values))

    def row(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        self._call("row", step, epoch, dict(values))

    def figure(self, name: str, path: Path, step: int) -> None:
        self._call("figure", name, path, step)

    def close(self, status: str) -> None:
        self._call("close", status)


class DurableRecorder(Recorder):
    durable = True


def test_a_run_folder_gets_its_files(open_book: Opener, tmp_path: Path) -> None:
    book = open_book(tensorboard=True)
    book.record(10, 0, {"loss": 0.5, "lr": 0.1})
    book.row(1.0, {"train_loss": 0.5, "eval_top1": 0.25, "lr": 0.1})
    book.close("finished")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("log.jsonl", "metrics.csv", "curves.png", "stdout.txt", "stderr.txt"),
        *("environment.jsonl", "tensorboard", "summary.txt"),
    }


def test_records_carry_the_load_of_the_machine(open_book: Opener, tmp_path: Path) -> None:
    open_book().record(10, 0, {"loss": 0.5, "data_wait": 0.25})
    (line,) = [line for line in lines(tmp_path) if line["kind"] == "train"]
    assert (line["step"], line["epoch"], line["loss"], line["data_wait"]) == (10, 0, 0.5, 0.25)
    assert line["process_memory_gib"] > 0


def test_a_row_knows_its_step(open_book: Opener) -> None:
    book, sink = open_book(), Recorder()
    book.add("recorder", lambda: sink)
    book.row(17 / 10, {"eval_loss": 0.5})
    assert sink.calls == [("row", (17, 1.7, {"eval_loss": 0.5}))]


def test_an_interrupted_run_ends_with_the_same_table(open_book: Opener, tmp_path: Path) -> None:
    def train(book: Logbook, first: int, last: int) -> None:
        for epoch in range(first, last + 1):
            book.record(10 * epoch, epoch - 1, {"loss": 1 / epoch})
            book.row(float(epoch), {"train_loss": 1 / epoch, "eval_top1": 1 - 1 / epoch})

    train(open_book(), 1, 7)  # never closed: killed
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "step')
    book = open_book(resumed_at=50, run_id="abc")
    train(book, 6, 10)
    book.close("finished")
    table = metrics_csv.read(tmp_path / "run" / "metrics.csv")
    assert [row["epoch"] for row in table] == [str(epoch) for epoch in range(1, 11)]
    kept = [line["step"] for line in jsonl.surviving(lines(tmp_path)) if line["kind"] == "train"]
    assert kept == list(range(10, 101, 10))
    assert len([line for line in lines(tmp_path) if line["kind"] == "train"]) == 12
    (resumed,) = events(tmp_path, "resumed")
    assert (resumed["step"], resumed["run_id"], resumed["device"]) == (50, "abc", "cpu")


def test_the_run_id_is_new_or_the_given_one(open_book: Opener, tmp_path: Path) -> None:
    fresh = open_book()
    assert fresh.run_id == events(tmp_path, "started")[0]["run_id"]
    assert len(fresh.run_id) >= 8
    assert open_book(resumed_at=10, run_id=fresh.run_id).run_id == fresh.run_id
    assert open_book().run_id != fresh.run_id


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_a_failing_sink_is_named_once_and_dropped(
    open_book: Opener, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    book, bad, good = open_book(), Recorder("record", error=error), Recorder()
    book.add("bad", lambda: bad)
    book.add("good", lambda: good)
    for step in (10, 20, 30):
        book.record(step, 0, {"loss": 0.5})
    book.close("finished")
    assert [name for name, _ in bad.calls] == ["record"]
    assert [name for name, _ in good.calls] == ["record", "record", "record", "close"]
    (failed,) = events(tmp_path, "sink_failed")
    assert f"Recorder: {error.__name__}: record" in failed["reason"]
    assert capsys.readouterr().err.count("warning: sink failed: Recorder") == 1


def test_a_durable_sink_is_tried_again_after_a_full_disk(open_book: Opener, tmp_path: Path) -> None:
    book, sink = open_book(), DurableRecorder("record", error=OSError)
    book.add("durable", lambda: sink)
    book.record(10, 0, {"loss": 0.5})
    book.record(20, 0, {"loss": 0.5})
    assert [name for name, _ in sink.calls] == ["record", "record"]
    assert len(events(tmp_path, "sink_failed")) == 1


def test_a_sink_that_can_not_open_or_close_stops_nothing(open_book: Opener, tmp_path: Path) -> None:
    book, after = open_book(), Recorder()
    assert book.add("absent", lambda: JsonLines(tmp_path / "no" / "folder")) is None
    book.add("after", lambda: after)
    book.add("closing", lambda: Recorder("close"))
    book.close("finished")
    assert [name for name, _ in after.calls] == ["close"]
    reasons = " ".join(event["reason"] for event in events(tmp_path, "sink_failed"))
    assert "absent: FileNotFoundError" in reasons
    assert "Recorder: ValueError: close" in reasons


def test_a_missing_tracker_is_a_user_error_and_undoes_the_opening(
    open_book: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sys.stdout, sys.stderr
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"log\.wandb"):
        open_book(wandb=True)
    assert (sys.stdout, sys.stderr) == before


def test_closing_restores_the_streams_and_a_second_close_does_nothing(
    open_book: Opener, tmp_path: Path
) -> None:
    before, book = sys.stdout, open_book()
    book.close("finished")
    book.close("again")
    book.record(10, 0, {"loss": 0.5})
    assert sys.stdout is before
    assert [event["status"] for event in events(tmp_path, "closed")] == ["finished"]
    assert lines(tmp_path)[-1]["event"] == "closed"


def test_the_summary_is_the_last_thing_on_the_screen_and_in_the_file(
    open_book: Opener, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = open_book()
    book.row(1.0, {"eval_top1": 0.25})
    book.close("finished")
    out = capsys.readouterr().out
    assert "eval_top1 25.00 % after epoch 1" in out
    assert "curves.png" in out.splitlines()[-1]
    assert out == (tmp_path / "run" / "stdout.txt").read_text()


FULL_DISK = """
import resource, sys
from pathlib import Path
from graftwerk.log import curves
from graftwerk.log.config import Log
from graftwerk.log.logbook import open_logbook

curves.FIRST = 0
folder = Path(sys.argv[1])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))
book = open_logbook(
    folder, Log(console="lines", tensorboard=False), run={}, facts={"device": "cpu"}, run_id=None,
    resumed_at=0, total_steps=400, steps_per_epoch=1,
)
for step in range(1, 301):
    book.record(step, step - 1, {"loss": 1 / step})
    book.row(float(step), {"eval_top1": 1 / step})
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
book.record(301, 300, {"loss": 1 / 301})
book.row(301.0, {"eval_top1": 1 / 301})
book.close("finished")
print("trained to the end")
"""


def test_training_goes_on_when_files_can_not_grow(tmp_path: Path) -> None:
    """Every file is limited to 4 KiB for 300 steps: writes really fail, and some are cut short."""
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("trained to the end\n")
    assert all(done.stderr.count(name) == 1 for name in ("JsonLines", "MetricsCsv", "Curves"))
    assert (folder / "curves.png").stat().st_size > 4096
    table = metrics_csv.read(folder / "metrics.csv")
    assert [row["epoch"] for row in table] == [str(epoch) for epoch in range(1, 302)]
    text = (folder / "log.jsonl").read_text().splitlines()
    whole = [json.loads(line) for line in text if line.endswith("}")]
    assert len(text) - len(whole) == 1  # the one that the limit cut
    assert [line["step"] for line in whole if line["kind"] == "train"][-1] == 301
