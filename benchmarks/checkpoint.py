"""How long does a save hold up the loop, written at once and written in a thread?

    python benchmarks/checkpoint.py [--megabytes 100] [--pairs 15] [--folder DIR]

Saves the same state in turns, once as `save.asynchronous=false` does and once as `true` does, with
steps of matrix products between them; an asynchronous save is on the disk before the next one
begins. Prints JSON: the seconds that `save` holds up the loop, the median over pairs of their ratio
(asynchronous ÷ synchronous) with its quartiles, and how much longer steps take while a thread
writes beside them (they share the processor's cores with it). With a GPU the state lies there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints
from graftwerk.writer import Writer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def state_of(megabytes: int) -> dict[str, Any]:
    """Tensors of 4 MB, as of a network with its optimizer."""
    tensors = [torch.randn(1_000_000, device=DEVICE) for _ in range(max(1, megabytes // 4))]
    return {"parts": dict(enumerate(tensors))}


def step(matrix: torch.Tensor) -> float:
    """Seconds of a step of some ten milliseconds."""
    began = time.perf_counter()
    for _ in range(4):
        matrix = matrix @ matrix
        matrix /= matrix.norm()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 4) for value in statistics.quantiles(values, n=4)]


def measure(folder: Path, megabytes: int, pairs: int) -> dict[str, Any]:
    checkpoints = Checkpoints(folder, World(), keep=2)
    writer = Writer(checkpoints, World(), replicated=True)
    state, matrix = state_of(megabytes), torch.randn(384, 384, device=DEVICE)
    held: dict[str, list[float]] = {"synchronous": [], "asynchronous": []}
    alone: list[float] = []
    beside: list[float] = []
    for pair in range(-1, pairs):  # the first of each is a warm-up
        began = time.perf_counter()
        checkpoints.save(2 * pair + 2, state, facts={})
        synchronous = time.perf_counter() - began
        quiet = [step(matrix) for _ in range(20)]
        began = time.perf_counter()
        writer.begin(2 * pair + 3, state, facts={}, best=None)
        asynchronous = time.perf_counter() - began
        busy: list[float] = []
        while not writer.idle():
            busy.append(step(matrix))
        writer.finish()
        if pair >= 0:
            held["synchronous"].append(synchronous)
            held["asynchronous"].append(asynchronous)
            alone.append(statistics.median(quiet))
            beside.append(statistics.median(busy or quiet))
    assert not any(outcome.problems for outcome in writer.outcomes())
    ratios = [a / s for a, s in zip(held["asynchronous"], held["synchronous"], strict=True)]
    slower = [b / a for b, a in zip(beside, alone, strict=True)]
    return {
        "median_seconds": {name: round(statistics.median(v), 4) for name, v in held.items()},
        "asynchronous_to_synchronous": quartiles(ratios),
        "step_beside_to_step_alone": quartiles(slower),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(Path(folder), options.megabytes, options.pairs)
    about = {
        "megabytes": options.megabytes,
        "pairs": options.pairs,
        "device": str(DEVICE),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(about | result, indent=1))


if __name__ == "__main__":
    main()
