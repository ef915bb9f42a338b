from __future__ import annotations

import os
from pathlib import Path

import pytest

from conftest import require_program
from graftwerk.cli import main
from graftwerk.rehearse import cluster as clusters
from graftwerk.rehearse.cluster import PROGRAMS
from graftwerk.rehearse.options import FOLDER


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["rehearse", *words]) == 2
    return capsys.readouterr().err


def test_from_start_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    require_program(*PROGRAMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(FOLDER, raising=False)
    try:
        assert main(["rehearse", "start", "--nodes=1", "--set", "MaxArraySize=7"]) == 0
        assert "graftwerk rehearse stop" in capfd.readouterr().out
        assert main(["rehearse", "shell", "--", "scontrol", "show", "config"]) == 0
        assert "MaxArraySize            = 7\n" in capfd.readouterr().out
        assert main(["rehearse", "shell", "srun", "sh", "-c", "exit 3"]) == 3
        assert "a rehearsal runs here" in refused(capfd, "start")
        assert "Invalid job id" in refused(capfd, "time-limit", "999")
        assert "no such node; there are n1" in refused(capfd, "lose", "n7")
        assert "start the rehearsal with --machines" in refused(capfd, "cut", "n1")
        assert "start it with --disk-mb" in refused(capfd, "fill")
        assert main(["rehearse", "lose", "n1"]) == 0
        assert main(["rehearse", "heal", "n1"]) == 0
    finally:
        assert main(["rehearse", "stop"]) == 0
    assert "no rehearsal here" in refused(capfd, "stop")


def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--folder", str(tmp_path / "here")]
    assert "write KEY=VALUE" in refused(capsys, "start", *folder, "--set", "nonsense")
    monkeypatch.setattr(clusters, "PROGRAMS", ("slurmctld", "slurm-from-the-moon"))
    assert "slurm-from-the-moon: not installed" in refused(capsys, "start", *folder)
    monkeypatch.setattr(clusters, "PROGRAMS", ("sh",))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "need root" in refused(capsys, "start", *folder, "--machines")
    assert "needs root" in refused(capsys, "start", *folder, "--disk-mb=1")
    long = tmp_path / ("x" * 100)
    assert "too long for Slurm's sockets" in refused(capsys, "start", "--folder", str(long))
    assert not (tmp_path / "here").exists()
