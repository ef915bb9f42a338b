"""Job arrays on a real Slurm: submission, dependencies, requeueing, what ends a run for good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graftwerk import config
from graftwerk.errors import GraftwerkError
from graftwerk.grid import grid
from graftwerk.launch import slurm
from graftwerk.launch.commands import cancel
from graftwerk.launch.retry import retry
from graftwerk.launch.sweep import locked
from graftwerk.run import Run
from jobs import (
    attempts,
    codes,
    ended,
    one_four_one_one,
    ordered,
    queue_ids,
    run_slurm,
    statuses,
    submitted,
    sweep,
    until,
)


def test_a_grid_with_failures_is_completed_by_retry(here: Path) -> None:
    base = config.override(Run, Run(name="g"), {"launch.slurm.cpus": 1, "launch.pack": 2})
    lots = grid(base, {"seed": range(24)})
    for name in ("3", "4", "17"):
        ordered(lots.runs[name], "f")
    submitted(lots)
    assert len(list((sweep().folder or here).glob("jobs/*.sh"))) == 1
    until(ended)
    found = statuses()
    assert [name for name, one in found.items() if one.state == "failed"] == ["3", "4", "17"]
    assert found["3"].reason == "crashed (exit code 1)"
    assert sum(one.state == "finished" for one in found.values()) == 21

    submitted(lots)
    assert ended()
    submitted(grid(base, {"seed": range(25)}), "larger")
    assert len(slurm.queue()) == 1
    assert retry(sweep().folder or here, [], 1) == 0
    until(ended)
    found = statuses("larger")
    assert {one.state for one in found.values()} == {"finished"}
    assert {one.attempts for one in found.values()} == {1}
    assert (lots.runs["3"].folder / "attempts-1.jsonl").exists()


def test_a_graph_waits_for_what_failed(here: Path) -> None:
    graph = one_four_one_one()
    submitted(graph)
    until(ended)
    states = {name: one.state for name, one in statuses().items()}
    assert states == {
        "one": "finished",
        **{f"part_{number}": "finished" for number in (0, 1, 3)},
        "part_2": "failed",
        "whole": "waiting",
        "end": "waiting",
    }
    submitted(graph)
    assert ended()
    retry(sweep().folder or here, [], 1)
    until(ended)
    assert {one.state for one in statuses().values()} == {"finished"}
    assert statuses()["one"].attempts == 1


@pytest.mark.usefixtures("here")
def test_a_run_goes_on_after_each_signal() -> None:
    run = ordered(config.override(Run, Run(name="long"), {"launch.slurm.time": "30"}), "wwa")
    submitted(run)
    for number in (1, 2):
        until((run.folder / "waits").exists)
        (run.folder / "waits").unlink()
        (job,) = queue_ids()
        run_slurm("scancel", "--signal=USR2", job)
        until(lambda number=number: len(codes(run)) == number)
    until(ended)
    assert codes(run) == [75, 75, 75, 0]
    began = [line["from"] for line in attempts(run) if "from" in line]
    assert began == ["", "step-00000010", "step-00000020", "step-00000030"]
    (one,) = statuses().values()
    assert (one.state, one.step, one.attempts) == ("finished", 40, 4)


@pytest.mark.usefixtures("here")
def test_a_hung_run_is_killed_before_the_time_limit_and_queued_again() -> None:
    keys = {"launch.slurm.time": "1", "launch.slurm.deadline": 55}
    run = ordered(config.override(Run, Run(name="hung"), keys), "h")
    submitted(run)
    until(ended)
    assert codes(run) == [137, 0]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("orders", "keys", "said"),
    [
        ("ssssss", {}, "no progress: 3 attempts began at the beginning (exit code 76)"),
        ("aaa", {"launch.attempts": 2}, "2 attempts, as many as launch.attempts allows"),
        ("u", {}, "a mistake of the command or its data (exit code 2)"),
    ],
)
def test_what_ends_a_run_for_good(orders: str, keys: dict[str, object], said: str) -> None:
    run = ordered(config.override(Run, Run(name="stuck"), keys), orders)
    submitted(run)
    until(ended)
    (one,) = statuses().values()
    assert one.state == "failed"
    assert said in one.reason


def test_cancelled_runs_save_and_are_not_queued_again(here: Path) -> None:
    run = ordered(Run(name="cancelled"), "w")
    submitted(run)
    until((run.folder / "waits").exists)
    assert cancel(here / "runs") == "1 runs cancelled"
    until(ended)
    (one,) = statuses().values()
    assert one.state == "cancelled"


def test_jobs_of_a_submitter_that_died_are_found_again(here: Path) -> None:
    run = ordered(Run(name="orphan"), "w")
    submitted(run)
    (record,) = (sweep().folder or here).glob("jobs/*.json")
    facts = json.loads(record.read_text())
    record.write_text(json.dumps({**facts, "job": None}))
    (run.folder / "job.json").unlink()
    submitted(run)
    assert len(slurm.queue()) == 1
    assert json.loads(record.read_text()) == facts


@pytest.mark.usefixtures("here")
def test_what_the_site_refuses_is_shown_as_it_said_it() -> None:
    run = config.override(Run, Run(name="r"), {"launch.slurm.partition": "nowhere"})
    with pytest.raises(GraftwerkError, match=r"sbatch refused: .*invalid partition"):
        submitted(run)
    assert ended()
    submitted(run.model_copy(update={"launch": Run().launch}))
    assert len(slurm.queue()) == 1


def test_an_element_beyond_the_grid_is_a_mistake(here: Path) -> None:
    submitted(ordered(Run(name="r"), "w"))
    folder = sweep().folder or here
    (script,) = folder.glob("jobs/*.sh")
    job = run_slurm("sbatch", "--parsable", "--array=7", "--wait-all-nodes=0", str(script)).strip()
    log = folder / "logs" / f"{job}_7.out"
    until(lambda: log.exists() and "element 7 is beyond the list" in log.read_text())


def test_a_second_submitter_is_refused(here: Path) -> None:
    with locked(here / "runs/sweeps"), pytest.raises(GraftwerkError, match=r"process .* is submit"):
        submitted(Run())
    assert ended()
