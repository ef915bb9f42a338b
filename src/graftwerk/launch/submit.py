"""From a graph of runs to job arrays: what is missing is submitted, and nothing twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from graftwerk import runfile
from graftwerk.errors import DONE, ConfigError
from graftwerk.files import replace
from graftwerk.launch import slurm, state
from graftwerk.launch.config import with_profile
from graftwerk.launch.container import folders_of, in_container, outermost
from graftwerk.launch.script import Job, processes_of, render
from graftwerk.launch.snapshot import snapshot
from graftwerk.launch.state import ACTIVE, FAILED, FINISHED
from graftwerk.launch.sweep import Sweep, chunks, locked
from graftwerk.pipeline import Pipeline
from graftwerk.run import Run


def submit(pipeline: Pipeline, recipe: str, words: Sequence[str], *, dry_run: bool) -> int:
    """`graftwerk run RECIPE --on slurm`."""
    runs = {name: _profiled(run) for name, run in pipeline.resolved().items()}
    sweep = Sweep.plan(pipeline, recipe)
    assert sweep.folder is not None
    if dry_run:
        for _, job in _jobs(sweep, runs, list(sweep.members), {}, Path("CODE"), 10**9):
            print(_script(job))
        return DONE
    with locked(sweep.folder.parent):
        longest = slurm.longest_array()
        _adopt(sweep.folder.parent)
        statuses = sweep.statuses(slurm.queue())
        new = [
            name for name, one in statuses.items() if one.state not in (*ACTIVE, FAILED, FINISHED)
        ]
        sweep.write(runs, recipe=recipe, words=list(words), workdir=str(Path.cwd()))
        failed = [name for name, one in statuses.items() if one.state == FAILED]
        held = dependents(sweep, failed)
        _hand_in(sweep, runs, [name for name in new if name not in held], longest)
    running = sum(one.state in ACTIVE for one in statuses.values())
    finished = sum(one.state == FINISHED for one in statuses.values())
    count = len([name for name in new if name not in held])
    print(f"{count} runs submitted, {running} were queued or running, {finished} are finished")
    if failed:
        print(f"{len(failed)} failed before; graftwerk retry {sweep.folder} trains them again")
    print(f"graftwerk status {sweep.folder}")
    return DONE


def resubmit(sweep: Sweep, names: Iterable[str], runs: Mapping[str, Run]) -> int:
    """Submit those of `names` that nobody trains and that are not finished; how many."""
    if sweep.folder is None:
        raise ConfigError(["retry: name a sweep folder (below sweeps/), not a folder of runs"])
    with locked(sweep.folder.parent):
        statuses = sweep.statuses(slurm.queue())
        wanted = [name for name in names if statuses[name].state not in (*ACTIVE, FINISHED)]
        order = [name for name in sweep.members if name in wanted]
        for name in order:
            state.forget_attempts(sweep.members[name].folder)
        _hand_in(sweep, runs, order, slurm.longest_array())
    return len(order)


def _profiled(run: Run) -> Run:
    return run.model_copy(update={"launch": with_profile(run.launch)})


def dependents(sweep: Sweep, names: Iterable[str]) -> list[str]:
    """Those that need any of `names`, directly or not."""
    held = set(names)
    found: list[str] = []
    for name, member in sweep.members.items():  # in an order in which they can be trained
        if name not in held and held.intersection(member.needs):
            held.add(name)
            found.append(name)
    return found


def _hand_in(sweep: Sweep, runs: Mapping[str, Run], names: Sequence[str], longest: int) -> None:
    """Submit `names`: the list, the script and the job's id are written down, in this order."""
    assert sweep.folder is not None
    if not names:
        return
    kinds = {file for name in names for file in runfile.kinds(runs[name]).values()}
    results = sweep.folder.parent.parent
    code = snapshot(Path.cwd(), sweep.folder.absolute(), without=results, kinds=kinds)
    jobs: dict[str, str] = {
        name: state.handed_to(member.folder) for name, member in sweep.members.items()
    }
    for folder in ("jobs", "logs"):
        (sweep.folder / folder).mkdir(exist_ok=True)
    for chunk, job in _jobs(sweep, runs, names, jobs, code, longest):
        record = sweep.folder / "jobs" / f"{job.name.rpartition('.')[2]}.json"
        folders = [str(sweep.members[name].folder) for name in chunk]
        replace(job.runs, "".join(f"{folder}\n" for folder in folders).encode())
        script = record.with_suffix(".sh")
        replace(script, _script(job).encode())
        facts = {"name": job.name, "runs": folders, "pack": job.launch.pack}
        replace(record, json.dumps({**facts, "job": None}).encode())
        _settle(record, {**facts, "job": slurm.submit(script)})
        jobs |= {name: state.handed_to(sweep.members[name].folder) for name in chunk}


def _settle(record: Path, facts: dict[str, object]) -> None:
    """Tell every run its job, then the record: the other way round, a crash would lose some."""
    folders, pack = facts["runs"], facts["pack"]
    assert isinstance(folders, list)
    assert isinstance(pack, int)
    for number, folder in enumerate(folders):
        state.hand_to(Path(folder), job=f"{facts['job']}_{number // pack}")
    replace(record, json.dumps(facts).encode())


def _adopt(sweeps: Path) -> None:
    """Find the jobs whose submitter died before it wrote their ids down."""
    for record in sweeps.glob("*/jobs/*.json"):
        facts = json.loads(record.read_text())
        if facts["job"] is not None:
            continue
        if job := slurm.job_called(facts["name"]):
            _settle(record, {**facts, "job": job})
        else:
            record.unlink()


def _jobs(
    sweep: Sweep,
    runs: Mapping[str, Run],
    names: Sequence[str],
    jobs: dict[str, str],
    code: Path,
    longest: int,
) -> Iterable[tuple[list[str], Job]]:
    """The arrays in the order of their submission: runs of equal jobs that need the same.

    `jobs` is read as late as possible: it holds the ids of the arrays submitted so far.
    """
    assert sweep.folder is not None
    groups: dict[str, list[str]] = {}
    for name in names:
        run, member = runs[name], sweep.members[name]
        shape = repr((member.needs, run.launch, processes_of(run)))
        groups.setdefault(shape, []).append(name)
    taken = len(list((sweep.folder / "jobs").glob("*.txt")))
    for group in groups.values():
        run = runs[group[0]]
        for chunk in chunks(group, longest * run.launch.pack):
            taken += 1
            unfinished = [
                need
                for need in sweep.members[chunk[0]].needs
                if need in names or state.status(sweep.members[need].folder, {}).state != FINISHED
            ]
            yield (
                chunk,
                Job(
                    name=f"{sweep.folder.name}.{taken}",
                    launch=run.launch,
                    processes=processes_of(run),
                    runs=sweep.folder.absolute() / "jobs" / f"{taken}.txt",
                    count=len(chunk),
                    output=sweep.folder.absolute() / "logs",
                    workdir=Path.cwd(),
                    code=code,
                    folders=tuple(outermost(f for name in chunk for f in folders_of(runs[name]))),
                    needs=tuple(jobs.get(need) or f"JOB_OF_{need}" for need in unfinished),
                ),
            )


def _script(job: Job) -> str:
    slurm, container = job.launch.slurm, job.launch.container
    python = "python" if slurm.conda or slurm.venv else sys.executable
    wrap = in_container(
        container,
        folders=[*job.folders, job.code, job.output],
        workdir=job.workdir,
        environment=slurm.environment,
    )
    return render(job, container.python if wrap else python, wrap)
