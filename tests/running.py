"""Starting real runs from tests, and comparing what they left behind."""

from __future__ import annotations

import multiprocessing as mp
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Protocol, Self, TypeVar

import psutil
import torch
from torch.multiprocessing.spawn import start_processes

from graftwerk import runfolder
from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints
from graftwerk.config import override
from graftwerk.launch.local import environment
from graftwerk.log import jsonl
from graftwerk.ports import free_port
from graftwerk.run import Run
from graftwerk.train import train
from graftwerk.verify import compare
from graftwerk.verify.attempt import PRELOADED

T = TypeVar("T")
HERE = Path(__file__).parent
TINY = f"{HERE / 'doubles.py'}:tiny"
PYTHON = {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
PATIENCE = 600.0
"""Seconds for what must happen on the busiest machine; pytest's own timeout is longer."""
IMPORTED = ("doubles", "gathering", "graftwerk.launch.here", "graftwerk.score")


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


def graftwerk(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command to its end, in a process that is forked: see `Forked`."""
    with TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        with Forked(*words, out=out, errors=errors, cwd=cwd) as process:
            code = process.wait()
        return subprocess.CompletedProcess(words, code, out.read_text(), errors.read_text())


@contextmanager
def started(
    command: Sequence[str],
    out: IO[Any] | int | None = None,
    *,
    errors: IO[Any] | int | None = None,
    cwd: Path | None = None,
) -> Generator[subprocess.Popen[Any]]:
    """A process that ends with the test, whatever becomes of it, and takes its own with it.

    Both of its outputs go to `out`, where `errors` is none.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | PYTHON,
        stdout=out,
        stderr=subprocess.STDOUT if errors is None and out is not None else errors,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end(process.pid)
        process.wait()


def end(pid: int) -> None:
    """SIGKILL to the leader of a session, to its group, and to all that it started."""
    tree: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        tree = [leader, *leader.children(recursive=True)]
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()


class Running(Protocol):
    """A process that may be asked how it ended."""

    def poll(self) -> int | None: ...


def until(
    happened: Callable[[], T],
    process: Running | None = None,
    tell: Callable[[], object] = lambda: "",
) -> T:
    """Wait until it returns something true, and return that.

    Fails with what `tell` returns when `process` has ended without it, and after `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        ended = process is not None and process.poll() is not None
        if found := happened():
            return found
        assert not ended, tell()
        assert time.monotonic() < deadline, tell()
        time.sleep(0.02)


class Forked:
    """``graftwerk *words`` as `ranks` processes, forked from one that has imported: at once there.

    No launcher looks after them. What they say goes to `out`, or their errors to `errors`. All of
    it ends with the context.
    """

    def __init__(
        self,
        *words: str,
        out: Path,
        errors: Path | None = None,
        ranks: int = 1,
        cwd: Path | None = None,
    ) -> None:
        out.touch()
        shared = environment(ranks, free_port()) if ranks > 1 else {}
        self.ranks: list[BaseProcess] = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            own = {**os.environ, **PYTHON, **shared, **own}
            target = partial(_typed, list(words), out, errors or out, cwd or Path.cwd(), own)
            self.ranks.append(fork_server().Process(target=target))
            self.ranks[-1].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for rank in self.ranks:
            if rank.exitcode is None and rank.pid is not None:
                end(rank.pid)
            rank.join()

    def poll(self) -> int | None:
        """The largest exit code; None while a rank runs."""
        codes = [rank.exitcode for rank in self.ranks]
        return None if None in codes else max(code for code in codes if code is not None)

    def wait(self) -> int:
        deadline = time.monotonic() + PATIENCE
        for rank in self.ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
        code = self.poll()
        assert code is not None, f"not ended after {PATIENCE:.0f} s"
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """To every rank; SIGKILL to their loaders, too."""
        send = os.killpg if number == signal.SIGKILL else os.kill
        for rank in self.ranks:
            if rank.exitcode is None and rank.pid is not None:
                send(rank.pid, number)


def in_processes(work: Callable[..., None], *arguments: object, ranks: int) -> None:
    """``work(rank, *arguments)`` in a process for each rank; an error of one is raised."""
    fork_server()
    start_processes(work, arguments, nprocs=ranks, start_method="forkserver")


def fork_server() -> ForkServerContext:
    """Its children are forks of a process without threads that has imported what most need.

    There is one in a process of pytest, and the first to ask decides what it has imported.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *IMPORTED])
    forkserver.ensure_running()
    return context


def _typed(words: list[str], out: Path, errors: Path, cwd: Path, env: dict[str, str]) -> None:
    os.setsid()
    mp.set_start_method(None, force=True)  # for its loaders, the fork server's by now
    os.environ.clear()
    os.environ |= env
    os.chdir(cwd)
    for place, number in ((out, 1), (errors, 2)):
        with place.open("ab") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["graftwerk", *words]
    runpy.run_module("graftwerk", run_name="__main__")


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
    """Of the lines of its log that are whole."""
    return [line for line in jsonl.read(run_folder / "log.jsonl") if line["kind"] == kind]


def steps(folder: Path) -> list[int]:
    """What the log of the one run below `folder` has come to; empty before there is one."""
    logs = folder.glob("*/log.jsonl")
    return [record["step"] for log in logs for record in records(log.parent, "train")]


def checkpoints(folder: Path) -> list[int]:
    """The steps of the checkpoints of the one run below `folder`, in order."""
    return sorted(int(path.name[5:]) for path in folder.glob("*/checkpoints/step-*"))


def differences(one: Any, other: Any) -> list[str]:
    """The places where two states are not the same to the last bit."""
    return [str(difference) for difference in compare.differences(one, other)]
