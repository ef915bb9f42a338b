from __future__ import annotations

import math
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graftwerk.log import metrics_csv
from graftwerk.log.curves import BEST, EMA, EVAL, FIRST, TRAIN, Curves, draw
from graftwerk.log.jsonl import JsonLines
from graftwerk.log.metrics_csv import MetricsCsv, Row

SEED = 11


def table(num: int, *names: str) -> list[Row]:
    rng = random.Random(SEED)
    return [
        {"epoch": str(i + 1), **{name: repr(rng.uniform(0.2, 0.9)) for name in names}}
        for i in range(num)
    ]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def amount(picture: np.ndarray, color: str) -> int:
    """Pixels of nearly this colour."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture - wanted).max(axis=-1) < 12).sum())


def test_the_picture_shows_every_curve(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    names = ("train_loss", "eval_loss", "ema_loss", "eval_top1", "ema_top1", "lr")
    draw(path, "digits-12ab", table(12, *names))
    picture = pixels(path)
    assert picture.shape[0] > 600
    assert picture.shape[1] > 1000
    for color in (TRAIN, EVAL, EMA, BEST):
        assert amount(picture, color) > 100, color
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_a_missing_column_leaves_its_curve_out(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    draw(path, "spark-12ab", table(12, "train_loss", "lr"))
    picture = pixels(path)
    assert amount(picture, TRAIN) > 100
    assert amount(picture, EVAL) == amount(picture, EMA) == amount(picture, BEST) == 0


@pytest.mark.parametrize("num", [0, 1, 2, 400])
def test_any_number_of_evaluations(tmp_path: Path, num: int) -> None:
    path = tmp_path / "curves.png"
    draw(path, "x", table(num, "train_loss", "eval_loss", "eval_top1", "lr"))
    assert (amount(pixels(path), EVAL) > 20) == (num > 0)


def test_values_that_are_not_finite_leave_gaps(tmp_path: Path) -> None:
    rows = table(5, "train_loss", "eval_loss", "eval_top1", "lr")
    for value in ("nan", "inf", "-inf"):
        rows[2] |= {"train_loss": value, "eval_loss": value, "eval_top1": "nan"}
        draw(tmp_path / "some.png", "x", rows)
        assert amount(pixels(tmp_path / "some.png"), TRAIN) > 100
    nothing = [dict.fromkeys(row, "nan") | {"epoch": row["epoch"]} for row in rows]
    draw(tmp_path / "none.png", "x", nothing)
    assert amount(pixels(tmp_path / "none.png"), TRAIN) == 0


def test_records_that_a_crash_overtook_are_drawn_once(tmp_path: Path) -> None:
    log = JsonLines(tmp_path)
    log.event("started", {"step": 0})
    for step in (10, 20, 30):
        log.record(step, step // 20, {"loss": 1.0, "lr": 0.1})
    log.event("resumed", {"step": 20})
    log.close("")
    curves = Curves(tmp_path, steps_per_epoch=20)
    curves.record(30, 1, {"loss": 2.0, "lr": 0.1})
    kept = [(record["at"], record["loss"]) for record in curves.records]
    assert kept == [(0.5, 1.0), (1.0, 1.0), (1.5, 2.0)]


def test_the_last_evaluation_is_always_in_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    rows, sink = MetricsCsv(tmp_path, 0), Curves(tmp_path, steps_per_epoch=10)
    for epoch in range(1, 6):
        values = {"eval_top1": 1 - math.exp(-epoch), "lr": 0.1}
        rows.row(10 * epoch, epoch, values)
        sink.row(10 * epoch, epoch, values)
    sink.close("finished")
    draw(tmp_path / "all.png", tmp_path.name, metrics_csv.read(tmp_path / "metrics.csv"))
    assert (pixels(path) == pixels(tmp_path / "all.png")).all()


def test_a_long_run_is_drawn_before_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rows, sink = MetricsCsv(tmp_path, 0), Curves(tmp_path, steps_per_epoch=10)
    for epoch in (1, 2):
        rows.row(10 * epoch, epoch, {"eval_top1": 0.5})
        sink.row(10 * epoch, epoch, {"eval_top1": 0.5})
        assert (tmp_path / "curves.png").exists() == (epoch == 2)
        now += FIRST


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw(tmp_path / "curves.png", "x", table(3, "eval_top1"))
    assert dict(mpl.rcParams) == before
