"""A table and a picture of a grid of sparse runs, from the run folders alone.

    python benchmarks/dst_results.py RUNS [--to docs/results/dst.png] [--score eval_top1]

Takes every run below RUNS that has finished. Runs of the same density that choose and grow weights
alike are one entry: mean and 95 % interval (Student's t) of the last score. The table is Markdown,
with a row for each way of choosing and a column for each density; the picture has a panel for each
growth.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints
from graftwerk.errors import GraftwerkError
from graftwerk.runfolder import RunFolder

Entry = tuple[str, str]
"""(What chooses the weights, how they grow)."""


def entry(sparsity: Any) -> Entry:
    if sparsity.kind in ("dense", "static"):
        return sparsity.kind, ""
    return sparsity.prune, sparsity.grow


def collect(folder: Path, score: str) -> dict[Entry, dict[float, list[float]]]:
    """Scores of the seeds, by entry and density."""
    found: dict[Entry, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.iterdir()):
        try:
            run = RunFolder.open(path).run
        except (GraftwerkError, OSError):
            continue
        entries = Checkpoints(path / "checkpoints", World(), keep=1).entries()
        manifest = entries[0].manifest() if entries else {}
        scores = manifest["scores"] if manifest.get("finished") else None
        if scores:
            density = getattr(run.sparsity, "density", 1.0)
            found[entry(run.sparsity)][density].append(scores[score])
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """(mean, half of the 95 % interval); nan where one seed says nothing of others."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, float("nan")
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, float(half)


def table(found: dict[Entry, dict[float, list[float]]]) -> str:
    densities = sorted({d for by_density in found.values() for d in by_density})
    head = ["", *(f"{density:g}" for density in densities), "seeds"]
    rows = [head, ["---"] * len(head)]
    for (prune, grow), by_density in sorted(found.items(), key=lambda item: item[0][::-1]):
        seeds = sorted({len(values) for values in by_density.values()})
        cells = [_cell(by_density.get(density)) for density in densities]
        rows.append([f"{prune}, {grow}" if grow else prune, *cells, "–".join(map(str, seeds))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(values: list[float] | None) -> str:
    if not values:
        return ""
    mean, half = interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}" if half == half else f"{100 * mean:.1f}"


def draw(path: Path, found: dict[Entry, dict[float, list[float]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    growths = sorted({grow for _, grow in found if grow})
    figure = Figure(figsize=(5.5 * max(1, len(growths)), 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(1, len(growths)), sharey=True, squeeze=False)[0]
    for panel, growth in zip(panels, growths or [""], strict=True):
        for (prune, grow), by_density in sorted(found.items()):
            if grow not in ("", growth):
                continue
            if prune == "dense":
                panel.axhline(
                    100 * interval(by_density[1.0])[0], color="#888888", ls="--", label="dense"
                )
                continue
            densities = sorted(by_density)
            means, halves = zip(*(interval(by_density[d]) for d in densities), strict=True)
            style = {"color": "black"} if prune == "static" else {}
            panel.errorbar(
                densities,
                [100 * mean for mean in means],
                [100 * half if half == half else 0 for half in halves],
                label=prune.replace("_", " "),
                marker="o",
                markersize=4,
                capsize=3,
                **style,
            )
        panel.set_xscale("log")
        ticks = sorted({density for by_density in found.values() for density in by_density} - {1.0})
        panel.set_xticks(ticks, [f"{density:g}" for density in ticks])
        panel.minorticks_off()
        panel.set_xlabel("density")
        panel.set_title(f"grown by {growth}" if growth else "", loc="left")
        panel.grid(color="#E3E3E3")
        panel.legend(fontsize=8, frameon=False)
    panels[0].set_ylabel("score (%)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path)
    parser.add_argument("--to", type=Path)
    parser.add_argument("--score", default="eval_top1")
    options = parser.parse_args()
    found = collect(options.runs, options.score)
    if not found:
        raise SystemExit(f"{options.runs}: no finished run in it")
    print(table(found))
    if options.to is not None:
        draw(options.to, found)


if __name__ == "__main__":
    main()
