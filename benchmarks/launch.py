"""The launcher on a private Slurm: a grid submitted, many runs looked at, a time limit survived.

    python benchmarks/launch.py [--runs 550] [--seen 1000] [--requeue]

Submits a grid of 550 runs as held jobs on a Slurm of its own with arrays of at most 250 elements,
and asks how 1,000 finished, running and failed runs stand; both as users do, by the command. With
--requeue a real run gets the signal of a time limit and is queued again: how many steps are lost?
Prints JSON: seconds (wall) and processor seconds of each command, the number of sbatch calls.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from graftwerk.launch import state
from graftwerk.rehearse.cluster import Cluster

RECIPES = """
from graftwerk.config import override
from graftwerk.grid import grid
from graftwerk.recipes.digits import digits

def lots():
    return grid(digits(), {{"optim.lr": (0.1, 0.2, 0.3, 0.4, 0.5), "seed": range({seeds})}})

def long():
    keys = {{"log.every": 1, "data.workers": 0, "save": "100 epochs", "log.tensorboard": False}}
    return override(type(digits()), digits(), keys)
"""
ARRAY = 250


def graftwerk(*words: str, folder: Path, env: dict[str, str]) -> dict[str, Any]:
    """Seconds of the command, on the clock and of the processor."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "graftwerk", *words],
        cwd=folder, env=os.environ | env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = {"seconds": time.monotonic() - began, "processor": processor}
    return {**{k: round(v, 2) for k, v in seconds.items()}, "said": done.stdout.splitlines()[-1]}


def submission(cluster: Cluster, folder: Path) -> dict[str, Any]:
    words = ["run", "recipes.py:lots", "--on", "slurm", "launch.slurm.extra.hold=true"]
    first = graftwerk(*words, folder=folder, env=cluster.env)
    again = graftwerk(*words, folder=folder, env=cluster.env)
    calls = len(list(folder.glob("runs/sweeps/*/jobs/*.sh")))
    cluster.run("scancel", "--state=PENDING", f"--user={os.environ.get('USER', 'root')}")
    return {"submit": first, "submit_again": again, "sbatch_calls": calls, "array": ARRAY}


def many_runs(folder: Path, count: int) -> None:
    """Run folders as they look after weeks: two thirds finished, the rest running and failed."""
    for number in range(count):
        run = folder / f"run-{number:08x}"
        checkpoint = run / "checkpoints" / "step-00001000"
        checkpoint.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"name": "run", "seed": number}))
        (run / "facts.json").write_text('{"steps": 1000}')
        scores = {"eval_loss": 1.0, "eval_top1": 0.5}
        finished = number % 3 != 0
        manifest = {"step": 1000, "finished": finished, "scores": scores}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
        lines = [{"kind": "train", "step": n, "remaining_seconds": 9.0} for n in range(0, 1000, 20)]
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        state.note(run, attempt=1, began=1)
        if not finished and number % 2:
            state.note(run, attempt=1, ended=2, code=1)
        state.hand_to(run, pid=os.getpid() if not finished and number % 2 == 0 else 2**30)


def requeue(cluster: Cluster, folder: Path) -> dict[str, Any]:
    graftwerk("run", "recipes.py:long", "--on", "slurm", folder=folder, env=cluster.env)

    def lines() -> list[dict[str, Any]]:
        logs = list(folder.glob("runs/digits-*/log.jsonl"))
        text = [line for log in logs for line in log.read_text().splitlines()]
        return [json.loads(line) for line in text]

    def steps() -> list[int]:
        return [line["step"] for line in lines() if line["kind"] == "train"]

    while max(steps(), default=0) < 5:
        time.sleep(0.1)
    job = cluster.run("squeue", "-h", "--states=R", "-o%A").stdout.split()[0]
    cluster.run("scancel", "--signal=USR2", job)
    while not (resumed := [line for line in lines() if line.get("event") == "resumed"]):
        time.sleep(0.5)
    stopped = next(line for line in lines() if line.get("event") == "stopped")
    done = max(
        line["step"]
        for line in lines()
        if line["kind"] == "train" and line["time"] <= stopped["time"]
    )
    cluster.run("scancel", job)
    return {"steps_done": done, "resumed_at": resumed[0]["step"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=550)
    parser.add_argument("--seen", type=int, default=1000)
    parser.add_argument("--requeue", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        folder = Path(place)
        (folder / "recipes.py").write_text(RECIPES.format(seeds=options.runs // 5))
        settings = {"MaxArraySize": str(ARRAY)}
        with Cluster.start(folder / "slurm", nodes=1, settings=settings) as cluster:
            found = {"runs": options.runs, **submission(cluster, folder)}
            if options.requeue:
                found["requeue"] = requeue(cluster, folder)
        many_runs(folder / "seen", options.seen)
        found["status"] = graftwerk("status", "seen", folder=folder, env={})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
