"""The submissions that the pages show: each is rendered, from the files that the page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from graftwerk.cli import main
from graftwerk.launch.config import PROFILES

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["slurm.md", "containers.md", "coming-from/convnext-cluster.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall((DOCS / page).read_text()) if found == kind]


def submissions(page: str) -> list[str]:
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("graftwerk run") and "--on slurm" in line]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    profiles, _ = blocks("slurm.md", "toml")
    (tmp_path / "clusters.toml").write_text(profiles)
    (source,) = blocks("slurm.md", "python")
    (tmp_path / "sweep.py").write_text(source)
    monkeypatch.setenv(PROFILES, str(tmp_path / "clusters.toml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "line", [line for page in PAGES for line in submissions(page) if "sweep.py" not in line]
)
def test_submissions_are_rendered(
    line: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*shlex.split(line)[1:], "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n#SBATCH --job-name=")
    assert {path.name for path in project.iterdir()} <= {"clusters.toml", "sweep.py", "__pycache__"}


def test_the_grid_has_550_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del project
    (line,) = (line for line in submissions("slurm.md") if "sweep.py" in line)
    assert main([*shlex.split(line)[1:], "--dry-run"]) == 0
    assert "#SBATCH --array=0-549%40\n" in capsys.readouterr().out


def test_the_published_job(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8 nodes × 8 GPUs, 72 hours, a signal two minutes before, requeued."""
    del project
    (line,) = submissions("coming-from/convnext-cluster.md")
    assert main([*shlex.split(line)[1:], "--dry-run"]) == 0
    script = capsys.readouterr().out
    for words in ("nodes=8", "gpus-per-node=8", "time=72:00:00", "signal=USR2@120", "requeue"):
        assert f"#SBATCH --{words}\n" in script
    assert "--nnodes=8 --nproc-per-node=8" in script
