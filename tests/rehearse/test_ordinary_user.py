"""A rehearsal without root; as root, the test becomes somebody else for it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

import graftwerk
from conftest import require_program
from graftwerk.rehearse.cluster import PROGRAMS

NOBODY = 65534
SCRIPT = """\
import sys
from pathlib import Path
from graftwerk.rehearse import accidents
from graftwerk.rehearse.cluster import Cluster
with Cluster.start(Path(sys.argv[1]), nodes=2) as cluster:
    accidents.lose(cluster, "n2")
    accidents.heal(cluster, "n2")
    print(cluster.run("srun", "-N2", "id", "-u").stdout)
"""


def test_an_ordinary_user_has_a_cluster_too() -> None:
    require_program(*PROGRAMS)
    places = {str(Path(module.__file__ or "").parents[1]) for module in (graftwerk, psutil)}
    env: dict[str, str] = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    who: dict[str, Any] = {}
    python, user = sys.executable, os.geteuid()
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        if user == 0:
            user, python = NOBODY, "/usr/bin/python3"  # root's own may lie in root's home
            os.chown(folder, user, user)
            who = {"user": user, "group": user, "extra_groups": []}
            probe = [python, "-c", "import psutil, graftwerk"]
            if subprocess.run(probe, env=env, capture_output=True, check=False, **who).returncode:
                pytest.skip(f"user {user} can't import graftwerk from {', '.join(places)}")
        command = [python, "-c", SCRIPT, f"{folder}/cluster"]
        said = subprocess.run(command, env=env, capture_output=True, text=True, check=False, **who)
        assert said.stdout.split() == [str(user)] * 2, said.stderr
