"""A laptop, a login node behind a real sshd, and the private Slurm behind that."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import require_program
from graftwerk.cli import main
from graftwerk.launch.config import PROFILES
from graftwerk.rehearse.cluster import Cluster
from running import until
from sshd import PROGRAMS, private_sshd

RECIPE = """\
from graftwerk.data.config import Augment
from graftwerk.models.config import Model
from graftwerk.run import BatchSize, Run

def small() -> Run:
    return Run(name="small", steps=1, model=Model(name="test_convnext"),
               augment=Augment(size=32), batch=BatchSize(size=8))
"""
PROFILE = """\
[lab]
host = "login"
storage = "{storage}"
ssh = "ssh -F {config}"
leave_out = ["*.ipynb"]

[lab.slurm]
venv = "{venv}"
extra = {{ hold = true }}

[here.slurm]
time = "10"
"""


@pytest.fixture
def laptop(
    tmp_path: Path, slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, Path]]:
    """(the working folder here, the storage there); `lab` is the profile that joins them."""
    require_program(*PROGRAMS)
    project, storage = tmp_path / "project", tmp_path / "storage"
    project.mkdir()
    (project / "recipe.py").write_text(RECIPE)
    (project / "notes.ipynb").touch()
    with private_sshd(tmp_path / "sshd", slurm.env) as config:
        profiles = tmp_path / "clusters.toml"
        profiles.write_text(PROFILE.format(storage=storage, config=config, venv=sys.prefix))
        monkeypatch.setenv(PROFILES, str(profiles))
        with tempfile.TemporaryDirectory(prefix="gw") as runtime:  # a short path, for the socket
            monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
            monkeypatch.chdir(project)
            yield project, storage
            (kept,) = Path(runtime).glob("gw-*")
            subprocess.run(["ssh", "-S", kept, "-O", "exit", "login"], check=True)


def test_a_run_from_a_laptop(
    laptop: tuple[Path, Path], slurm: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    """The job is held in the queue, and let go when all commands have seen it there."""
    project, storage = laptop
    assert main(["--at", "lab", "run", "recipe.py"]) == 0
    assert "1 runs submitted" in capfd.readouterr().out
    assert (storage / "project" / "recipe.py").exists()
    assert not (storage / "project" / "notes.ipynb").exists()
    assert not (project / "runs").exists()
    (snapshot,) = (storage / "project" / "runs" / "sweeps").glob("*/code-*")
    assert [path.name for path in (snapshot / "tree").iterdir()] == ["recipe.py"]

    def status() -> list[str]:
        assert main(["--at=lab", "status", "--json"]) == 0
        return [one["state"] for one in json.loads(capfd.readouterr().out.splitlines()[-1])]

    def reaches(state: str) -> bool:
        """Slurm takes its time to hold a job, and to let go of a cancelled one."""
        return until(lambda: status() == [state])

    assert reaches("queued")
    assert main(["--at", "lab", "run", "recipe.py"]) == 0
    assert "0 runs submitted, 1 were queued or running" in capfd.readouterr().out

    out = project / "results.csv"
    assert main(["--at", "lab", "results", "--out", str(out)]) == 0
    assert "missing: " in capfd.readouterr().out
    assert out.exists()
    (sweep,) = (storage / "project" / "runs" / "sweeps").glob("recipe-*")
    assert main(["--at", "lab", "cancel", str(sweep)]) == 0
    assert reaches("cancelled")
    assert main(["--at", "lab", "retry", str(sweep)]) == 0
    assert reaches("queued")
    (run,) = (storage / "project" / "runs").glob("small-*")
    slurm.run("scontrol", "release", json.loads((run / "job.json").read_text())["job"])
    checkpoint = run / "checkpoints" / "step-00000001"
    until(checkpoint.exists, tell=lambda: [*map(Path.read_text, sweep.glob("logs/*"))])
    assert reaches("finished")
    assert main(["--at", "lab", "results", "--out", str(out)]) == 0
    assert "eval_top1" in out.read_text()


def test_what_is_wrong_is_said(
    laptop: tuple[Path, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--at", "lab", "status", "runs"]) == 2
    assert "No such file" in capfd.readouterr().err
    assert main(["--at", "here", "status"]) == 2
    assert "launch.host: profile 'here' needs" in capfd.readouterr().err
    assert main(["--at", "lba", "status"]) == 2
    assert "did you mean 'lab'" in capfd.readouterr().err
    profiles = laptop[0].parent / "clusters.toml"
    profiles.write_text('[lab]\nhost = "nobody@127.0.0.1"\nstorage = "/x"\nssh = "ssh -p 1"\n')
    assert main(["--at", "lab", "run", "recipe.py"]) == 2
    assert "nobody@127.0.0.1: ssh failed" in capfd.readouterr().err
    with monkeypatch.context() as without:
        without.setenv("PATH", "/nonexistent")
        assert main(["--at", "lab", "status"]) == 2
    assert "ssh: not installed" in capfd.readouterr().err
