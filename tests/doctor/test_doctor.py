"""`graftwerk doctor`: what it finds on this machine, and in places that are made unfit."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from graftwerk.doctor import machine, network, storage
from graftwerk.doctor.finding import Finding, amount
from running import graftwerk


def test_this_machine_in_a_few_seconds_and_without_a_trace(tmp_path: Path) -> None:
    done = graftwerk("doctor", "--json", "--folder", "runs/new", cwd=tmp_path)
    report = json.loads(done.stdout)
    findings = {finding["what"]: finding for finding in report["findings"]}
    assert done.returncode == (0 if report["ok"] else 1), done.stderr
    for what in ("torch", "devices", "shared memory", "ports", "interface", "Slurm"):
        assert findings[what]["found"]
    assert findings["2 local ranks"]["verdict"] == "ok", findings["2 local ranks"]
    assert findings["run folders: locks"]["verdict"] == "ok"
    assert all(finding["advice"] for finding in findings.values() if finding["verdict"] != "ok")
    assert list(tmp_path.iterdir()) == []


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def test_a_folder_that_can_not_be_made_is_broken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = by_name(storage.check(tmp_path / "file" / "runs"))["run folders"]
    assert found.verdict == "broken"
    assert "Not a directory" in found.found
    assert "log.folder" in found.advice


def test_what_is_tried_on_a_disk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    found = by_name(storage.check(tmp_path))
    assert found["run folders: renames"].verdict == found["run folders: locks"].verdict == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_no_scratch_of_its_own_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    assert by_name(storage.check(tmp_path))["scratch"].verdict == "note"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert "TMPDIR" not in by_name(storage.check(tmp_path))["scratch"].advice


def test_a_port_in_use_is_noted() -> None:
    with socket.socket() as listener:
        try:
            listener.bind(("", network.PORTS[0]))
        except OSError:
            pytest.skip("somebody uses it already")
        listener.listen()
        found = by_name(network.check())["ports"]
    assert found.verdict == "note"
    assert str(network.PORTS[0]) in found.found


def test_an_interface_that_is_not_there_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(network.INTERFACE, "nowhere0")
    assert by_name(network.check())["interface"].verdict == "broken"


@pytest.mark.parametrize(
    ("script", "verdict", "said"),
    [
        ("echo 'main* 4 idle'", "ok", "main* 4 idle"),
        ("echo 'slurm_load_partitions: no controller' >&2; exit 1", "note", "no controller"),
    ],
)
def test_slurm_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, verdict: str, said: str
) -> None:
    (tmp_path / "sinfo").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = by_name(network.check())["Slurm"]
    assert found.verdict == verdict
    assert said in found.found


def test_few_open_files_are_noted() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
    try:
        found = by_name(machine.check())["open files"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found.verdict == "note"
    assert "ulimit -n" in found.advice


@pytest.mark.parametrize(
    ("size", "words"), [(512, "512 B"), (2**25, "32 MiB"), (1.5 * 2**40, "1.5 TiB")]
)
def test_amounts_in_words(size: float, words: str) -> None:
    assert amount(size) == words
