"""`graftwerk verify-resume` on real trainings: one that resumes exactly, and one that does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest

from graftwerk.cli import main
from graftwerk.verify.disturb import KINDS
from moments import early_seed
from running import PATIENCE, PYTHON, TINY, Forked, command, steps, until

pytestmark = pytest.mark.long

HIDDEN = f"{Path(__file__).parent / 'hidden.py'}:forgetful"
KEYS = ["data.workers=0", "evaluate.every=1000"]


def test_a_run_that_is_killed_twice_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seed = str(early_seed(2, 10, KINDS))
    words = ["verify-resume", TINY, "--kills", "2", "--seed", seed, "--json", *KEYS]
    code, said = main(words), capsys.readouterr()
    assert code == 0, f"seed {seed}: {said}"
    found = json.loads(said.out)
    assert found["equal"]
    assert found["hits"], f"seed {seed}"
    rows = {row["what"]: row for row in found["runs"]["tiny"]}
    wanted = {"losses", "metrics.csv", "weights", "moving average", "optimizer", "sample order"}
    assert wanted | {"random generators"} <= rows.keys()
    assert all(row["undisturbed"] == row["disturbed"] for row in rows.values())
    assert not list(tmp_path.glob("graftwerk-verify-*"))


def test_a_state_outside_of_checkpoints_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sigterm_after_step_5 = 35  # a run that has no checkpoint begins anew, and shows nothing
    words = ["verify-resume", HIDDEN, "--kills", "1", "--folder", str(tmp_path / "both"), *KEYS]
    words += ["--seed", str(sigterm_after_step_5)]
    code, said = main(words), capsys.readouterr()
    assert code == 1, said
    assert "DIFFERENT" in said.out
    assert (
        "the first difference (undisturbed, and disturbed):\nforgetful, losses: step " in said.out
    )
    assert (tmp_path / "both" / "whole").exists()


def test_a_run_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify-resume", "spark_digits", "--run", "finetun", "--folder", str(tmp_path / "x")]
    assert main(words) == 2
    assert "did you mean 'finetune'?" in capsys.readouterr().err


def test_a_verification_that_is_ended_ends_its_training(tmp_path: Path) -> None:
    words = ["verify-resume", TINY, "--folder=both", "objective=unhurried", "steps=1000", *KEYS]
    words += ["log.every=1"]
    out = tmp_path / "out"
    with Forked(*words, out=out, cwd=tmp_path) as process:
        until(lambda: steps(tmp_path / "both" / "whole"), process, out.read_text)
        begun = psutil.Process(process.ranks[0].pid).children(recursive=True)
        assert begun
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
        assert psutil.wait_procs(begun, timeout=PATIENCE)[1] == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_kills(tmp_path: Path) -> None:
    keys = [*KEYS, "steps=60", "save=5 steps", "ema.decay=0.9", "schedule.warmup_epochs=0"]
    words = command("verify-resume", "digits", "--kills=100", "--json", *keys)
    environment = os.environ | PYTHON | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads(done.stdout)["hits"]) > 50
