"""Jobs on a private Slurm that run a stand-in for graftwerk (`launch/payload.py`)."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from graftwerk.data.config import Data
from graftwerk.launch import slurm
from graftwerk.launch.state import Status
from graftwerk.launch.submit import submit
from graftwerk.launch.sweep import Sweep
from graftwerk.launch.table import queue_of
from graftwerk.pipeline import Pipeline
from graftwerk.run import Run
from graftwerk.verify.jobs import Impatience


class Many(Data, kind="many"):
    """A run that starts from any number of others."""

    parts: tuple[Path, ...] = ()


def one_four_one_one() -> Pipeline:
    """A graph of 1 → 4 → 1 → 1 runs; the first attempt at `part_2` crashes."""
    runs = {"one": Run(name="one")}
    names = [f"part_{number}" for number in range(4)]
    for name in names:
        runs[name] = Run(name=name, data=Many(parts=(Path("run:one"),)))
    runs["whole"] = Run(name="whole", data=Many(parts=tuple(Path(f"run:{n}") for n in names)))
    runs["end"] = Run(name="end", data=Many(parts=(Path("run:whole"),)))
    graph = Pipeline(runs)
    resolved = graph.resolved()
    ordered(resolved["part_2"], "f")
    for name, run in resolved.items():
        run.folder.mkdir(parents=True, exist_ok=True)
        needed = [str(resolved[other].folder) for other in graph.needs[name]]
        (run.folder / "needs").write_text(" ".join(needed))
    return graph


def queue_ids() -> list[str]:
    return list(slurm.queue())


def run_slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ordered(run: Run, orders: str) -> Run:
    """`run`, whose first attempts obey `orders`."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "orders").write_text(orders)
    return run


def sweep(recipe: str = "mine") -> Sweep:
    (folder,) = Path("runs/sweeps").glob(f"{recipe}-*")
    return Sweep.open(folder)


def statuses(recipe: str = "mine") -> dict[str, Status]:
    return sweep(recipe).statuses(queue_of(sweep(recipe)))


def submitted(found: Run | Pipeline, recipe: str = "mine") -> None:
    assert submit(Pipeline.of(found), f"{recipe}.py", [], dry_run=False) == 0


def until(happened: Callable[[], bool]) -> None:
    """Wait for it; a requeued job hardly waits for its old credential here."""
    impatience = Impatience()
    while not happened():
        impatience.hurry(slurm.queue())
        time.sleep(0.3)


def ended() -> bool:
    return not slurm.queue()


def attempts(run: Run) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.folder / "attempts.jsonl").read_text().splitlines()]


def codes(run: Run) -> list[object]:
    return [line["code"] for line in attempts(run) if "code" in line]
