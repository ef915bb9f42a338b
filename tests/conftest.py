"""What tests in several folders ask of the machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from graftwerk.rehearse.cluster import PROGRAMS, Cluster

SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


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
