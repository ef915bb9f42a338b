"""`sparsity.png`: which weights of a run exist, where, and how they change."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graftwerk.files import replace
from graftwerk.log.jsonl import Line
from graftwerk.log.style import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 8
"""Up to so many layers, or pairs of criteria, are named one by one."""
LAYER, OVERLAP = "density/", "jaccard/"
HEIGHT = 3.7
"""Inches of a row of panels."""


def draw(path: Path, title: str, records: Sequence[Line]) -> None:
    """Replace the PNG at `path`; without a record that has `density`, draw nothing.

    `records` are lines with `at`, the fraction of epochs done, and what the sparsity axis logs:
    `density`, `density/LAYER`, `exploration`, `prune_rate`, `jaccard/ONE-OTHER` and, once for each
    update, `jaccard/ONE-OTHER/LAYER`.
    """
    records = [line for line in records if line.get("density") is not None]
    if not records:
        return
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12)
        rows = ["LE", *(["JM"] if _pairs(records) else []), *(["BT"] if _by_layer(records) else [])]
        figure = Figure(figsize=(11, 0.5 + HEIGHT * len(rows)), dpi=120, layout=layout)
        FigureCanvasAgg(figure)
        panels = {"L": _layers, "E": _explored, "J": _overlap, "M": _matrix}
        panels |= {"B": _last_by_layer, "T": _layers_over_time}
        axes = figure.subplot_mosaic(";".join(rows))
        for name, panel in axes.items():
            panels[name](panel, records)
            if name in "LEJ":
                panel.set_xlabel("epoch")
                panel.set_xlim(0, 1.03 * max(line["at"] for line in records))
        figure.suptitle(_title(title, records), fontsize=14, fontweight="bold", x=0.02, ha="left")
        png = io.BytesIO()
        figure.savefig(png, format="png")
    replace(path, png.getvalue())


def _title(title: str, records: Sequence[Line]) -> str:
    last = records[-1]
    text = f"{title}   ·   density {last['density']:.3g}"
    if (flops := last.get("inference_flops")) is not None:
        text += f", {flops:.3g} of the dense network's FLOPs"
    return text


def _layers(axes: Axes, records: Sequence[Line]) -> None:
    from matplotlib.ticker import LogLocator

    names = _names(records, LAYER)
    _lines(axes, records, LAYER, names)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_title("Density of each layer")
    if len(names) > NAMED:
        _scale(axes, names)


def _scale(axes: Axes, names: Sequence[str]) -> None:
    """Colours from the first layer to the last."""
    from matplotlib.cm import ScalarMappable

    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(ScalarMappable(cmap="viridis"), ax=axes, ticks=[0, 1], pad=0.01)
    bar.ax.set_yticklabels([names[0], names[-1]], rotation=90, fontsize=8)
    for label, side in zip(bar.ax.get_yticklabels(), ("bottom", "top"), strict=True):
        label.set_verticalalignment(side)


def _explored(axes: Axes, records: Sequence[Line]) -> None:
    shares = {
        "exploration": "ever active (Rs), of all weights",
        "density": "active, of all weights",
        "prune_rate": "pruned by an update, of the active",
    }
    for name, label in shares.items():
        if (curve := _curve(records, name))[0]:
            axes.plot(*curve, label=label)
    axes.set_ylim(0, 1)
    axes.set_title("Shares")
    axes.legend()


def _overlap(axes: Axes, records: Sequence[Line]) -> None:
    _lines(axes, records, OVERLAP, _pairs(records))
    axes.set_ylim(0, 1)
    axes.set_title("Overlap of pruned weights (Jaccard)")


def _matrix(axes: Axes, records: Sequence[Line]) -> None:
    """The newest overlap of each pair of criteria."""
    last = next(line for line in reversed(records) if _pairs([line]))
    pairs = [(*name.split("-"), last[OVERLAP + name]) for name in _pairs([last])]
    criteria = list(dict.fromkeys(name for one, other, _ in pairs for name in (one, other)))
    overlap = np.eye(len(criteria))
    for one, other, value in pairs:
        i, j = criteria.index(one), criteria.index(other)
        overlap[i, j] = overlap[j, i] = value
    axes.imshow(overlap, vmin=0, vmax=1, cmap="Blues")
    words = [name.replace("_", " ") for name in criteria]
    axes.set_xticks(range(len(words)), words, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(words)), words, fontsize=8)
    axes.grid(False)
    for (i, j), value in np.ndenumerate(overlap):
        color = "white" if value > 0.6 else "black"
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_title("… in the last update")


def _last_by_layer(axes: Axes, records: Sequence[Line]) -> None:
    """The overlap of each pair in each layer."""
    updates, pairs, layers = _by_layer(records), _pairs(records), _names(records, LAYER)
    last = updates[-1]
    overlap = [[last.get(f"{OVERLAP}{p}/{name}", np.nan) for name in layers] for p in pairs]
    _map(axes, np.array(overlap), "… by pair and layer")
    few = len(layers) <= NAMED
    names = layers if few else [layers[0], layers[-1]]
    places = range(len(layers)) if few else (0, len(layers) - 1)
    axes.set_xticks(list(places), names, rotation=30, ha="right", fontsize=8)
    words = [pair.replace("_", " ") for pair in pairs]
    axes.set_yticks(range(len(words)), words, fontsize=8 if len(words) <= NAMED else 6)


def _layers_over_time(axes: Axes, records: Sequence[Line]) -> None:
    """The mean of all pairs in each layer, update by update."""
    updates, pairs, layers = _by_layer(records), _pairs(records), _names(records, LAYER)
    overlap = [
        [np.mean([line.get(f"{OVERLAP}{p}/{name}", np.nan) for p in pairs]) for line in updates]
        for name in layers
    ]
    _map(axes, np.array(overlap), "… of all pairs, by layer over the updates")
    few = len(layers) <= NAMED
    places = list(range(len(layers)) if few else (0, len(layers) - 1))
    axes.set_yticks(places, [layers[place] for place in places], fontsize=8)
    times = sorted({0, len(updates) // 2, len(updates) - 1})
    axes.set_xticks(times, [f"{updates[time]['at']:.3g}" for time in times])
    axes.set_xlabel("epoch")


def _map(axes: Axes, values: np.ndarray, title: str) -> None:
    image = axes.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto", interpolation="none")
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=axes, pad=0.01)
    axes.grid(False)
    axes.set_title(title)


def _lines(axes: Axes, records: Sequence[Line], prefix: str, names: Sequence[str]) -> None:
    from matplotlib import colormaps

    few = len(names) <= NAMED
    for number, name in enumerate(names):
        shade = colormaps["viridis"](number / max(1, len(names) - 1))
        color = f"C{number}" if few else shade
        marker = "." if len(records) == 1 else ""
        label = name.replace("_", " ") if few else None
        axes.plot(*_curve(records, prefix + name), color=color, marker=marker, label=label)
    if names and few:
        axes.legend(fontsize=8)


def _curve(records: Sequence[Line], name: str) -> tuple[list[float], list[float]]:
    points = [(line["at"], line[name]) for line in records if line.get(name) is not None]
    return [at for at, _ in points], [value for _, value in points]


def _pairs(records: Sequence[Line]) -> list[str]:
    return [name for name in _names(records, OVERLAP) if "/" not in name]


def _by_layer(records: Sequence[Line]) -> list[Line]:
    """The records that have overlaps of layers: the first after each update."""
    return [line for line in records if any("/" in name for name in _names([line], OVERLAP))]


def _names(records: Sequence[Line], prefix: str) -> list[str]:
    """What follows `prefix` in the keys of the records, in order of appearance."""
    keys = dict.fromkeys(key for line in records for key in line if key.startswith(prefix))
    return [key.removeprefix(prefix) for key in keys]
