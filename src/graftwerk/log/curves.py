"""`curves.png`: loss, accuracy and learning rate of a run; draws `sparsity.png` too."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from graftwerk.files import replace
from graftwerk.log import density, metrics_csv, words
from graftwerk.log.jsonl import Line, read, surviving
from graftwerk.log.metrics_csv import Row, column
from graftwerk.log.sink import Sink
from graftwerk.log.style import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARE_OF_TIME = 0.05
"""Drawing after each evaluation may take this share of the run's time; the end is always drawn."""
FIRST = 20.0
"""Seconds of a run without a picture: where its end is as near, one is enough."""
DOTTED = 40
"""Up to so many evaluations each have a dot."""
WIDE_RANGE = 30
"""A loss that falls by a larger factor is drawn on a logarithmic axis."""

TRAIN, EVAL, EMA, RATE, BEST = "#4C72B0", "#DD8452", "#55A868", "#7A7A7A", "#C44E52"


def draw(path: Path, title: str, rows: Sequence[Row], records: Sequence[Line] = ()) -> None:
    """Replace the PNG at `path`.

    `rows` are those of `metrics.csv`; whatever columns they lack is left out. `records` (lines
    with `at`, the fraction of epochs done, and `loss` or `lr`) add the detail between evaluations.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12)
        figure = Figure(figsize=(11, 6.4), dpi=120, layout=layout)
        FigureCanvasAgg(figure)
        has_accuracy = any(row.get(name) for row in rows for name in ("eval_top1", "ema_top1"))
        mosaic = "LA;RR" if has_accuracy else "L;R"
        axes = figure.subplot_mosaic(mosaic, height_ratios=[4, 1])
        _loss(axes["L"], rows, records)
        if has_accuracy:
            _accuracy(axes["A"], rows)
        _rate(axes["R"], rows, records)
        last = max([line["at"] for line in records] + column(rows, "epoch"), default=0)
        for panel in axes.values():
            panel.set_xlabel("epoch")
            panel.set_xlim(0, 1.03 * (last or 1))
            panel.xaxis.set_major_locator(MaxNLocator(integer=last >= 2, steps=[1, 2, 5, 10]))
        figure.suptitle(_title(title, rows), fontsize=14, fontweight="bold", x=0.02, ha="left")
        png = io.BytesIO()
        figure.savefig(png, format="png")
    replace(path, png.getvalue())


def _title(title: str, rows: Sequence[Row]) -> str:
    row, ranked = metrics_csv.best(rows), metrics_csv.ranking(rows)
    if row is None or ranked is None:
        return title
    name, _ = ranked
    score = words.number(name, float(row[name]))
    return f"{title}   ·   best {_label(name)} {score} after epoch {float(row['epoch']):g}"


def _loss(axes: Axes, rows: Sequence[Row], records: Sequence[Line]) -> None:
    if detail := [(line["at"], line["loss"]) for line in records if line.get("loss") is not None]:
        axes.plot(*zip(*detail, strict=True), color=TRAIN, alpha=0.3, linewidth=0.8)
    for name, color in (("train_loss", TRAIN), ("eval_loss", EVAL), ("ema_loss", EMA)):
        _line(axes, rows, name, color)
    losses = [y for line in axes.get_lines() for y in np.asarray(line.get_ydata(), dtype=float)]
    losses = [loss for loss in losses if math.isfinite(loss)]
    if losses and min(losses) > 0 and max(losses) > WIDE_RANGE * min(losses):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    _finish(axes, "Loss")


def _accuracy(axes: Axes, rows: Sequence[Row]) -> None:
    for name, color in (("eval_top1", EVAL), ("ema_top1", EMA)):
        _line(axes, rows, name, color, scale=100)
    row, ranked = metrics_csv.best(rows), metrics_csv.ranking(rows)
    if row is not None and ranked is not None:
        epoch, score = float(row["epoch"]), 100 * float(row[ranked[0]])
        axes.plot(epoch, score, "*", color=BEST, markersize=15, label=f"best {score:.2f} %")
    _finish(axes, "Top-1 accuracy (%)")


def _rate(axes: Axes, rows: Sequence[Row], records: Sequence[Line]) -> None:
    rates = [(line["at"], line["lr"]) for line in records if line.get("lr") is not None]
    rates = rates or list(zip(column(rows, "epoch"), column(rows, "lr"), strict=True))
    if rates:
        marker = "." if len(rates) == 1 else ""
        axes.plot(*zip(*rates, strict=True), color=RATE, linewidth=1.5, marker=marker)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    axes.set_title("Learning rate")


def _line(axes: Axes, rows: Sequence[Row], name: str, color: str, scale: float = 1) -> None:
    values = [scale * value for value in column(rows, name)]
    if any(math.isfinite(value) for value in values):
        marker = "o" if len(rows) <= DOTTED else ""
        epochs = column(rows, "epoch")
        axes.plot(epochs, values, color=color, marker=marker, markersize=4, label=_label(name))


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _label(name: str) -> str:
    return name.replace("_", " ").replace("top1", "top-1").replace("ema", "EMA")


class Curves(Sink):
    """Draws after evaluations, and when the run ends."""

    durable = True

    def __init__(self, folder: Path, steps_per_epoch: int) -> None:
        self._folder = folder
        self._steps_per_epoch = steps_per_epoch
        self.records = self._earlier_records()
        self._stale = False
        self._not_before = time.monotonic() + FIRST

    @override
    def record(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        self.records.append({"at": step / self._steps_per_epoch, **values})

    @override
    def row(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        self._stale = True
        if time.monotonic() >= self._not_before:
            self._draw()

    @override
    def close(self, status: str) -> None:
        if self._stale:
            self._draw()

    def _draw(self) -> None:
        began = time.monotonic()
        try:
            rows = metrics_csv.read(self._folder / "metrics.csv")
            draw(self._folder / "curves.png", self._folder.name, rows, self.records)
            density.draw(self._folder / "sparsity.png", self._folder.name, self.records)
            self._stale = False
        finally:
            now = time.monotonic()
            self._not_before = now + (now - began) / SHARE_OF_TIME

    def _earlier_records(self) -> list[Line]:
        path = self._folder / "log.jsonl"
        lines = surviving(read(path)) if path.exists() else []
        return [
            {"at": line["step"] / self._steps_per_epoch, **line}
            for line in lines
            if line["kind"] == "train"
        ]
