"""Starting real runs from tests, and comparing what they left behind."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import runpy
import shutil
import signal
import subprocess
import sys
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from graftwerk import runfolder
from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints
from graftwerk.config import override
from graftwerk.launch.local import environment, free_port
from graftwerk.run import Run
from graftwerk.train import train
from graftwerk.verify import compare
from graftwerk.verify.attempt import PRELOADED

HERE = Path(__file__).parent
TINY = f"{HERE / 'doubles.py'}:tiny"
PYTHON = {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}


def train_here(run: Run, folder: Path, **keys: Any) -> dict[str, float]:
    """Train in this process, one rank; the scores."""
    run = configured(run, folder, **keys)
    runfolder.prepare(run)
    return train(run, World())


def train_again(run: Run, after: int) -> None:
    """Forget what came after so many steps of a run, and train the rest once more."""
    checkpoints = run.folder / "checkpoints"
    for late in checkpoints.glob("step-*"):
        if late.name > f"step-{after:08}":
            shutil.rmtree(late)
    (checkpoints / "best.json").unlink(missing_ok=True)
    assert newest_state(run.folder)[0] == after
    train(run, World())


def configured(run: Run, folder: Path, **keys: Any) -> Run:
    """`keys` spell dots as two underscores: ``optim__lr=1``."""
    keys = {key.replace("__", "."): value for key, value in keys.items()}
    return override(Run, run, {"log.folder": str(folder), "log.console": "quiet", **keys})


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "graftwerk", *words]


class Forked:
    """``graftwerk *words`` as `ranks` processes, forked from one that has imported: at once there.

    No launcher looks after them. What they say goes to `out`.
    """

    def __init__(self, *words: str, out: Path, ranks: int = 1) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED, "doubles"])
        shared = environment(ranks, free_port()) if ranks > 1 else {}
        self.ranks: list[BaseProcess] = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            target = partial(_typed, list(words), out, PYTHON | shared | own)
            self.ranks.append(context.Process(target=target))
            self.ranks[-1].start()

    def poll(self) -> int | None:
        """The largest exit code; None while a rank runs."""
        codes = [rank.exitcode for rank in self.ranks]
        return None if None in codes else max(code for code in codes if code is not None)

    def wait(self) -> int:
        for rank in self.ranks:
            rank.join()
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """To every rank; SIGKILL to their loaders, too."""
        send = os.killpg if number == signal.SIGKILL else os.kill
        for rank in self.ranks:
            if rank.exitcode is None and rank.pid is not None:
                send(rank.pid, number)


def _typed(words: list[str], out: Path, env: dict[str, str]) -> None:
    os.setsid()
    mp.set_start_method(None, force=True)  # for its loaders, the fork server's by now
    os.environ |= env
    with out.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["graftwerk", *words]
    runpy.run_module("graftwerk", run_name="__main__")


def graftwerk(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command as a person types it, to its end; after its time it goes with its workers."""
    process = subprocess.Popen(
        command(*words),
        cwd=cwd,
        env=os.environ | PYTHON | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # workers hold the pipes
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def only_run(folder: Path) -> Path:
    """The one run folder below `folder`."""
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def newest_state(run_folder: Path, rank: int = 0) -> tuple[int, dict[str, Any]]:
    """(step, state of `rank`) of the newest checkpoint, which must be intact."""
    entry = Checkpoints(run_folder / "checkpoints", World(), keep=1).entries()[0]
    entry.verify()
    return entry.step, torch.load(entry.folder / f"rank{rank}.pt", weights_only=True)


def records(run_folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_folder / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def differences(one: Any, other: Any) -> list[str]:
    """The places where two states are not the same to the last bit."""
    return [str(difference) for difference in compare.differences(one, other)]
