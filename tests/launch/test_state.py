"""States, tables and results from plain files alone, whole or not."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graftwerk import config
from graftwerk.cli import main
from graftwerk.errors import ConfigError
from graftwerk.grid import grid
from graftwerk.launch import state
from graftwerk.launch.commands import choose, results
from graftwerk.launch.state import Queued, status
from graftwerk.launch.sweep import Sweep
from graftwerk.launch.table import table
from graftwerk.pipeline import Pipeline
from graftwerk.run import Run
from running import PATIENCE, started

BEGAN = {"attempt": 1, "began": 1, "from": "", "job": "7_0", "node": "n1"}


def folder_of(tmp_path: Path, *lines: dict[str, Any], job: str = "7_0") -> Path:
    folder = tmp_path / "run-1234"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    state.hand_to(folder, job=job)
    for line in lines:
        state.note(folder, **line)
    return folder


def checkpoint(folder: Path, step: int, *, finished: bool = True, top1: float = 0.5) -> None:
    path = folder / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    scores = {"eval_loss": 1.5, "eval_top1": top1}
    manifest = {"step": step, "finished": finished, "scores": scores}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("lines", "queue", "said"),
    [
        ((), {}, "waiting"),
        ((), {"7_0": Queued(False, "Priority")}, "queued"),
        ((BEGAN,), {"7_0": Queued(True, "n1")}, "running"),
        ((BEGAN,), {"7_1": Queued(True, "n1")}, "stopped"),
        ((BEGAN, {"code": 75}), {"7_0": Queued(False, "BeginTime")}, "queued"),
        ((BEGAN, {"code": 75}), {}, "stopped"),
        ((BEGAN, {"code": 1}), {}, "failed"),
        ((BEGAN, {"code": 76, "reason": "no progress"}), {}, "failed"),
        ((BEGAN, {"cancelled": 2}, {"code": 75}), {}, "cancelled"),
        ((BEGAN, {"cancelled": 2}, BEGAN, {"code": 65}), {}, "failed"),
    ],
)
def test_states(
    tmp_path: Path, lines: tuple[dict[str, Any], ...], queue: dict[str, Queued], said: str
) -> None:
    assert status(folder_of(tmp_path, *lines), queue).state == said


def test_progress_and_time_left_are_the_log_s(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BEGAN)
    checkpoint(folder, 10, finished=False)
    (folder / "facts.json").write_text('{"steps": 40}')
    log = [{"kind": "train", "step": 25, "remaining_seconds": 90.0}, {"kind": "event"}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"kin')
    found = status(folder, {"7_0": Queued(True, "n[1-2]")})
    assert (found.step, found.steps, found.eta, found.where) == (25, 40, 90.0, "n[1-2]")
    assert (found.metric, found.value) == ("eval_top1", 0.5)
    row = table([found])[1].split()
    assert row[:4] == ["run-1234", "running", "25", "of"]


def test_half_written_and_missing_files_count_for_nothing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BEGAN)
    for name in ("job.json", "attempts.jsonl", "facts.json", "log.jsonl", "checkpoints/best.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"attempt": 1, "beg')
    checkpoint(folder, 10, finished=False)
    (folder / "checkpoints/step-00000020").mkdir()
    found = status(folder, {})
    assert (found.state, found.step) == ("waiting", 10)


def test_processes_of_this_machine_are_looked_for(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BEGAN)
    state.hand_to(folder, pid=os.getpid())
    assert status(folder, {}).state == "running"
    assert status(folder, {}).where == socket.gethostname()
    state.hand_to(folder, pid=2**30)
    assert status(folder, {}).state == "stopped"


def sweep_of_three(tmp_path: Path) -> Sweep:
    base = config.override(Run, Run(name="g"), {"log.folder": str(tmp_path / "runs")})
    runs = grid(base, {"optim.lr": (0.1, 0.2, 0.3)})
    sweep = Sweep.plan(runs, "mine.py:lots")
    sweep.write(runs.resolved(), recipe="mine.py")
    for number, name in enumerate(("1", "2")):
        checkpoint(sweep.members[name].folder, 5, top1=0.5 + number / 10)
    assert sweep.folder is not None
    return Sweep.open(sweep.folder)


def test_results_are_the_keys_that_vary_and_the_scores(tmp_path: Path) -> None:
    sweep = sweep_of_three(tmp_path)
    out = tmp_path / "out.csv"
    said = results(sweep.folder or tmp_path, out)
    assert said == ["2 of 3 runs are finished", "missing: 3 (waiting)", str(out)]
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"run": "1", "optim.lr": "0.1", "steps": "5", "eval_loss": "1.5", "eval_top1": "0.5"},
        {"run": "2", "optim.lr": "0.2", "steps": "5", "eval_loss": "1.5", "eval_top1": "0.6"},
    ]
    with pytest.raises(ConfigError, match=r"should end in \.csv or \.parquet"):
        results(tmp_path / "runs", tmp_path / "out.txt")


def test_results_as_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    sweep, out = sweep_of_three(tmp_path), tmp_path / "out.parquet"
    results(sweep.folder or tmp_path, out)
    rows = parquet.read_table(out).to_pylist()
    assert [(row["run"], row["optim.lr"], row["eval_top1"]) for row in rows] == [
        ("1", 0.1, 0.5),
        ("2", 0.2, 0.6),
    ]


def test_status_is_watched_until_all_have_ended(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BEGAN)
    watch = [sys.executable, "-u", "-m", "graftwerk", "status", str(folder), "--watch", "0.1"]
    with started(["sleep", "600"]) as process:
        state.hand_to(folder, pid=process.pid)
        with started(watch, subprocess.PIPE) as watching:
            assert watching.stdout is not None
            lines = (line.split() for line in watching.stdout if line.startswith(b"run-1234"))
            assert [next(lines)[1], next(lines)[1]] == [b"running", b"running"]
            process.kill()
            process.wait()
            said = watching.stdout.read().decode()
            assert watching.wait(PATIENCE) == 0
    assert said.splitlines()[-1] == "1 runs: 1 stopped"


def test_logs_are_the_run_s_own_and_its_job_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of_three(tmp_path)
    assert sweep.folder is not None
    run = sweep.members["2"].folder
    state.hand_to(run, job="7_1")
    (run / "stdout.txt").write_text("epoch 1\n")
    (sweep.folder / "logs").mkdir()
    (sweep.folder / "logs" / "7_1.out").write_text("srun: error\n")
    assert main(["logs", str(sweep.folder), "2"]) == 0
    said = capsys.readouterr().out
    assert f"==> {run}/stdout.txt\nepoch 1\n==> " in said
    assert "7_1.out\nsrun: error\n" in said
    assert main(["logs", str(sweep.folder), "7"]) == 2
    assert "7: no such run here" in capsys.readouterr().err


def test_runs_are_chosen_by_state_or_by_their_config(tmp_path: Path) -> None:
    sweep = sweep_of_three(tmp_path)
    for line in (BEGAN, {"code": 1}):
        state.note(sweep.members["3"].folder, **line)
    statuses = sweep.statuses({})
    assert choose(sweep, statuses, []) == ["3"]
    assert choose(sweep, statuses, ["optim.lr=0.3"]) == ["3"]
    assert choose(sweep, statuses, ["optim.lr=0.2"]) == []


def test_deleted_runs_and_folders_of_runs_are_told(tmp_path: Path) -> None:
    sweep = sweep_of_three(tmp_path)
    (sweep.members["3"].folder / "run.json").unlink()
    assert sweep.statuses({})["3"].state == "deleted"
    assert len(Sweep.open(tmp_path / "runs").members) == 2


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ('{"format": 7}', "written by another version of graftwerk (format 7, here 1)"),
        ('{"format": 1, "runs": {"1": {}}}', "sweep.json: damaged (KeyError: 'folder')"),
        ('{"form', "sweep.json: can't be read (Unterminated string"),
    ],
)
def test_sweeps_of_other_versions_and_damaged_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], contents: str, said: str
) -> None:
    (tmp_path / "sweep.json").write_text(contents)
    assert main(["status", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["status"], ["retry"], ["cancel"], ["results"], ["logs"]])
def test_a_folder_without_runs_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    more = ["1"] if words == ["logs"] else []
    assert main([*words, str(tmp_path), *more]) == 2
    assert f"{tmp_path}: neither a sweep nor a run is here" in capsys.readouterr().err


def test_one_folder_is_one_run_and_a_larger_grid_another_sweep() -> None:
    same = Pipeline({"a": Run(), "b": Run()})
    assert list(Sweep.plan(same, "x").members) == ["a"]
    small, large = (Sweep.plan(grid(Run(), {"seed": range(n)}), "x.py") for n in (2, 3))
    assert small.folder != large.folder
    assert small.members.items() <= large.members.items()


def test_status_imports_no_torch(tmp_path: Path) -> None:
    folder_of(tmp_path)
    code = (
        "import sys\nfrom graftwerk.cli import main\n"
        f"main(['status', {str(tmp_path)!r}])\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
