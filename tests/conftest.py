"""What tests in several folders ask of the machine."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from graftwerk.launch import snapshot
from graftwerk.rehearse.cluster import PROGRAMS, Cluster
from jobs import ended, queue_ids, until

SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked `long` begins first, in each of the equal parts that xdist's workers get."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    modules: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("long"):
            modules.setdefault(item.path, []).append(item)
    others = [item for item in items if not item.get_closest_marker("long")]
    found: list[pytest.Item] = []
    for worker in range(workers):
        end = len(items) * (worker + 1) // workers
        found += itertools.chain(*[*modules.values()][worker::workers])
        count = max(0, end - len(found))
        found, others = found + others[:count], others[count:]
    items[:] = found


def require_program(*programs: str) -> None:
    """Skip the calling test where one of `programs` is missing; with GRAFTWERK_CI set, fail it."""
    missing = [name for name in programs if shutil.which(name, path=SEARCH) is None]
    if missing:
        refuse = pytest.fail if "GRAFTWERK_CI" in os.environ else pytest.skip
        refuse(f"needs {', '.join(missing)}: `make test-system` installs what is missing")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A private Slurm of four nodes with four CPUs and two faked GPUs each, shared by all tests.

    A test that breaks nodes or wants other settings starts a `Cluster` of its own.
    """
    require_program(*PROGRAMS)
    with Cluster.start(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def here(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory whose jobs run a stand-in; no job outlives the test."""
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    payload = Path(__file__).parent / "launch" / "payload.py"
    shutil.copy(payload, package / "__main__.py")
    monkeypatch.setattr(snapshot, "PACKAGE", package)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield work
    if left := queue_ids():
        subprocess.run(["scancel", "--full", "--signal=KILL", *left], check=False)
        subprocess.run(["scancel", *left], check=False)
        until(ended)
