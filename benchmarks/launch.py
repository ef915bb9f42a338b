"""The launcher on a private Slurm: a grid submitted, many runs looked at, a time limit survived.

    python benchmarks/launch.py [--runs 550] [--seen 1000] [--requeue]

Submits a grid of 550 runs as held jobs on a Slurm of its own with arrays of at most 250 elements,
asks how 1,000 finished, running and failed runs stand and tabulates them; all as users do, by the
command. With --requeue a real run gets the signal of a time limit and goes on: what is lost?
Prints JSON: seconds (wall) and processor seconds of each command, the number of sbatch calls.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graftwerk.launch import state
from graftwerk.rehearse import accidents
from graftwerk.rehearse.cluster import Cluster

RECIPES = """
from graftwerk.config import override
from graftwerk.grid import grid
from graftwerk.recipes.digits import digits

def lots():
    return grid(digits(), {{"optim.lr": (0.1, 0.2, 0.3, 0.4, 0.5), "seed": range({seeds})}})

def long():
    keys = {{"log.every": 1, "data.workers": 0, "save": "1000 epochs", "epochs": 1000}}
    return override(type(digits()), digits(), keys)
"""
ARRAY = 250
PATIENCE = 600.0
"""Seconds that a step, a save or another attempt may take on a busy machine."""


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
    """A real run gets what a time limit sends, saves, and goes on in its next attempt."""
    graftwerk("run", "recipes.py:long", "--on", "slurm", folder=folder, env=cluster.env)
    (run,) = folder.glob("runs/digits-*")

    def lines(**facts: Any) -> list[dict[str, Any]]:
        file = run / "log.jsonl"
        texts = file.read_text().splitlines(keepends=True) if file.exists() else []
        found = [json.loads(text) for text in texts if text.endswith("\n")]
        return [one for one in found if facts.items() <= one.items()]

    def until(happened: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            if time.monotonic() > deadline:
                said = [path.read_text() for path in folder.glob("runs/sweeps/*/logs/*")]
                raise SystemExit("\n".join([f"waited in vain for {what}", *said]))
            time.sleep(0.02)

    until(lambda: len(lines(kind="train")) > 20, "steps")
    job = json.loads((run / "job.json").read_text())["job"]
    asked = time.time()
    accidents.time_limit(cluster, job, signal="USR2")
    manifests = (run / "checkpoints").glob("step-*/manifest.json")
    until(lambda: "ended" in (run / "attempts.jsonl").read_text(), "the end of the attempt")
    saved = max(path.stat().st_mtime for path in manifests)
    trained = lines(kind="train")
    until(lambda: lines(kind="event", event="resumed"), "the next attempt")
    (resumed,) = lines(kind="event", event="resumed")
    cluster.run("scancel", job)
    times = [one["time"] for one in trained]
    step = statistics.median(after - before for before, after in itertools.pairwise(times))
    return {
        "last_step": trained[-1]["step"],
        "resumed_at": resumed["step"],
        "steps_after_the_signal": sum(one["time"] > asked for one in trained),
        "step_seconds": round(step, 3),
        "seconds_from_the_signal_to_the_last_step": round(times[-1] - asked, 3),
        "seconds_of_the_save": round(saved - times[-1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=550)
    parser.add_argument("--seen", type=int, default=1000)
    parser.add_argument("--requeue", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        folder = Path(place)
        (folder / "long").mkdir()
        for place in (folder, folder / "long"):
            (place / "recipes.py").write_text(RECIPES.format(seeds=options.runs // 5))
        settings = {"MaxArraySize": str(ARRAY)}
        with Cluster.start(folder / "slurm", nodes=1, settings=settings) as cluster:
            found = {"runs": options.runs, **submission(cluster, folder)}
            if options.requeue:
                found["requeue"] = requeue(cluster, folder / "long")
        many_runs(folder / "seen", options.seen)
        for words in (("status",), ("results", "--out=table.csv")):
            found[words[0]] = graftwerk(*words, "seen", folder=folder, env={})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
