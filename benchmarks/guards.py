"""What do the guards of a step cost: finite gradients, statistics put back, hangs watched for?

    python benchmarks/guards.py [--steps 200]

Trains the run of `benchmarks/engine.py` twice in one process, in turns: a step with the guards as
they are, then one without any of them. Prints JSON: the median over pairs of steps of their ratio
in time (guarded ÷ not) with its quartiles, and the guards' own time as a share of a step. So, too,
what a gossip replica spends on looking whether the weights that it sends are finite.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from engine import GPU, config
from torch import Tensor

from graftwerk import runfolder
from graftwerk.axes import Batch, Step, World
from graftwerk.config import override
from graftwerk.nonfinite import Guard
from graftwerk.run import Run
from graftwerk.sync.config import Gossip
from graftwerk.sync.replicas import buckets, is_finite
from graftwerk.train import take_step
from graftwerk.watchdog import guarding


class Off(Guard):
    """Looks at nothing."""

    def begin(self) -> None:
        pass

    def note(self, loss: Tensor, indices: Tensor) -> None:
        pass

    def passes(self) -> bool:
        return True


class Timed(Guard):
    """Notes what the checks take by themselves."""

    seconds = 0.0

    def begin(self) -> None:
        self.seconds = self._timed(super().begin)[1]

    def passes(self) -> bool:
        passed, seconds = self._timed(super().passes)
        self.seconds += seconds
        return passed

    def _timed(self, check: Any) -> tuple[Any, float]:
        if GPU:
            torch.cuda.synchronize()
        began = time.perf_counter()
        return check(), time.perf_counter() - began


class Loop:
    """A run, a step at a time."""

    def __init__(self, run: Run, guard: type[Guard], *, watched: bool) -> None:
        self.parts = run.build(World(device=torch.device("cuda" if GPU else "cpu")))
        self.parts.guard = guard(self.parts.objective, self.parts.optimizer)
        self.parts.begin()
        self.parts.objective.train()
        self.batches: Iterator[Batch] = self.parts.train_batches(0)
        self.steps: Iterator[Step] = self.parts.steps(0)
        self.watchdog = guarding(run.faults, run.folder, self.parts.world) if watched else None

    def step(self) -> float:
        began = time.perf_counter()
        step = next(self.steps)
        take_step(self.parts, self.batches, step)
        self.parts.guard.count(skipped=step.skipped, scale=1.0)
        if self.watchdog is not None:
            self.watchdog.moved(step.number + 1)
        if GPU:
            torch.cuda.synchronize()
        return time.perf_counter() - began


def gossip_check(loop: Loop) -> float:
    """Seconds of one look at all weights, in the pieces that gossip sends."""
    pieces = buckets(list(loop.parts.objective.parameters()), Gossip().bucket_mb << 20)
    flats = [torch.cat([p.detach().flatten() for p in piece]) for piece in pieces]
    began = time.perf_counter()
    assert all(is_finite(flat) for flat in flats)
    return time.perf_counter() - began


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 5) for value in statistics.quantiles(values, n=4)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200, help="of each")
    steps: int = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        run = override(Run, config(Path(folder)), {"steps": steps, "sparsity": "dense"})
        runfolder.prepare(run)
        guarded, bare = Loop(run, Timed, watched=True), Loop(run, Off, watched=False)
        pairs: list[tuple[float, float, float]] = []
        checks: list[float] = []
        for number in range(steps):
            order = [bare, guarded] if number % 2 else [guarded, bare]
            seconds = {loop: loop.step() for loop in order}
            assert isinstance(guarded.parts.guard, Timed)
            pairs.append((seconds[guarded], seconds[bare], guarded.parts.guard.seconds))
            checks.append(gossip_check(guarded) / seconds[guarded])
    warm = list(itertools.islice(pairs, steps // 10, None))
    low, median, high = quartiles([one / other for one, other, _ in warm])
    _, share, _ = quartiles([own / whole for whole, _, own in warm])
    facts = {
        "benchmark": "guards",
        "ratio_median": median,
        "ratio_quartiles": [low, high],
        "share_of_a_step": share,
        "gossip_check_share_of_a_step": quartiles(checks)[1],
        "pairs": len(warm),
        "device": torch.cuda.get_device_name() if GPU else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
