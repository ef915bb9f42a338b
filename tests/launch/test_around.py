"""What happens around a submission: the shell that made it is gone, the disk is full."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import require_program
from graftwerk.cli import main
from graftwerk.launch import slurm, snapshot
from graftwerk.launch.retry import retry
from graftwerk.launch.sweep import Sweep
from graftwerk.log.config import Log
from graftwerk.recipes import find
from jobs import (
    ended,
    ordered,
    queue_ids,
    run_slurm,
    sweep,
    until,
)

ONE = """\
from graftwerk.run import Run

def one():
    return Run(name="one")
"""
PAIR = """\
from pathlib import Path
from graftwerk.models.config import Model
from graftwerk.pipeline import Pipeline
from graftwerk.run import Run

def pair():
    after = Run(name="after", model=Model(pretrained=Path("run:before")))
    return Pipeline({"before": Run(name="before"), "after": after})
"""
SUBMIT = """\
from pathlib import Path
from graftwerk.cli import main
from graftwerk.launch import snapshot
snapshot.PACKAGE = Path({package!r})
main(["run", "recipe.py", "--on", "slurm"])
"""


def test_the_shell_that_submitted_may_close(here: Path) -> None:
    """It has a terminal of its own, which is gone before the second run begins."""
    require_program("script")
    (here / "recipe.py").write_text(PAIR)
    code = SUBMIT.format(package=str(snapshot.PACKAGE))
    shell = ["script", "-qc", shlex.join([sys.executable, "-c", code]), "/dev/null"]
    subprocess.run(shell, check=True, start_new_session=True)
    assert len(slurm.queue()) == 2
    until(ended)
    folder = here / (sweep("recipe").folder or here)
    look = [sys.executable, "-m", "graftwerk", "status", str(folder), "--json"]
    found = subprocess.run(look, cwd="/", check=True, capture_output=True, text=True).stdout
    assert [one["state"] for one in json.loads(found)] == ["finished", "finished"]


def test_a_full_disk_loses_no_run(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is full at the submission, and again when a job saves; there is room afterwards."""
    if os.geteuid() != 0:
        pytest.skip("a small disk has to be mounted, which needs root")
    disk, filler = tmp_path / "disk", tmp_path / "disk" / "filler"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "disk", disk], check=True)
    try:
        (here / "recipe.py").write_text(ONE)
        words = ["run", "recipe.py", "--on", "slurm", f"log.folder={disk}"]
        fill(filler)
        assert main(words) == 74
        assert "No space left on device" in capfd.readouterr().err
        assert ended()
        filler.unlink()
        run = find("recipe.py").model_copy(update={"log": Log(folder=disk)})
        ordered(run, "w")
        assert main(words) == 0
        until((run.folder / "waits").exists)
        fill(filler)
        (job,) = queue_ids()
        run_slurm("scancel", "--signal=USR2", job)
        until(ended)
        filler.unlink()
        (before,) = Sweep.open(disk).statuses({}).values()
        assert before.state in ("failed", "stopped")
        folder = next(disk.glob("sweeps/*"))
        assert main(words) == 0
        assert retry(folder, [], 1) == 0
        until(ended)
        (after,) = Sweep.open(disk).statuses({}).values()
        assert after.state == "finished"
    finally:
        subprocess.run(["umount", "--lazy", disk], check=False)


def fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(512))
