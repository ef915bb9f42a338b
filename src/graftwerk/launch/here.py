"""`graftwerk run` on this machine: one run, or all runs of a graph."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from graftwerk.errors import DONE
from graftwerk.launch.attend import attended, begin
from graftwerk.launch.local import is_worker, run_workers
from graftwerk.launch.pool import run_pool
from graftwerk.launch.sweep import Sweep
from graftwerk.pipeline import Pipeline
from graftwerk.run import Run


def run_here(
    pipeline: Pipeline, recipe: str, words: Sequence[str], arguments: Sequence[str], jobs: int
) -> int:
    """Train what is not finished; `arguments` are those of the command, for workers."""
    runs = pipeline.resolved()
    processes = 1 if is_worker() else max(run.processes for run in runs.values())
    if len(runs) > 1 and not is_worker():
        sweep = Sweep.plan(pipeline, recipe)
        sweep.write(runs, recipe=recipe, words=list(words), workdir=str(Path.cwd()))
        if max(jobs, processes) > 1:
            return run_pool(sweep, runs, jobs)
    for run in runs.values():
        code = attended(run.folder, lambda run=run: _train(run, processes, arguments))
        if code != DONE:
            return code
    return DONE


def _train(run: Run, processes: int, arguments: Sequence[str]) -> int:
    if processes == 1:
        from graftwerk.start import start

        start(run, begin)
        return DONE
    elastic = run.sync.elastic
    if elastic is None:
        return run_workers(processes, arguments)
    from graftwerk.launch.supervise import supervise

    command = [sys.executable, "-m", "graftwerk", *arguments]
    return supervise(processes, command, restarts=elastic.restarts)
