from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from graftwerk.lock import FILE, STALE, FolderLock, LockedError, Owner, read
from running import PATIENCE, TINY, Forked, graftwerk, only_run, started, steps, until


def left_behind(folder: Path, *, silent: float = 0.0, **facts: object) -> None:
    """A lock that its holder did not give back."""
    holder = replace(Owner.me(), token="theirs", **facts)  # pyright: ignore[reportArgumentType]
    (folder / FILE).write_text(json.dumps(asdict(holder)))
    heard = (folder / FILE).stat().st_mtime - silent
    os.utime(folder / FILE, (heard, heard))


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_holder_at_a_time_and_nothing_left_afterwards(tmp_path: Path) -> None:
    with closing(FolderLock(tmp_path)) as lock:
        lock.acquire()
        with pytest.raises(LockedError, match=f"process {os.getpid()} on .* end it and type"):
            FolderLock(tmp_path).acquire()
        assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [False, True])
def test_of_many_at_the_same_moment_one_gets_it(tmp_path: Path, left: bool) -> None:
    if left:
        left_behind(tmp_path, pid=ended_process())
    gate, locks = threading.Barrier(8), [FolderLock(tmp_path) for _ in range(8)]
    refused: list[LockedError] = []

    def work(lock: FolderLock) -> None:
        gate.wait()
        try:
            lock.acquire()
        except LockedError as error:
            refused.append(error)

    threads = [threading.Thread(target=work, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    assert [lock.held for lock in locks].count(True) == 1
    holder = read(tmp_path / FILE)
    assert holder is not None
    assert holder.token != "theirs"
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


ELSEWHERE = {"host": "node7", "machine": "another boot", "pid": 1}


@pytest.mark.parametrize(
    ("facts", "taken"),
    [
        pytest.param({}, False, id="a process that lives"),
        pytest.param({"silent": 10 * STALE}, False, id="a process that lives, but sleeps"),
        pytest.param({"started": "1"}, True, id="a pid that is another process now"),
        pytest.param(ELSEWHERE, False, id="elsewhere, heard of just now"),
        pytest.param({**ELSEWHERE, "silent": STALE / 2}, False, id="elsewhere, silent for a while"),
        pytest.param({**ELSEWHERE, "silent": STALE + 5}, True, id="elsewhere, silent too long"),
        pytest.param({**ELSEWHERE, "job": "7", "starts": [0, 0]}, True, id="requeued"),
        pytest.param({**ELSEWHERE, "job": "7", "starts": [1, 0]}, False, id="the same start"),
        pytest.param({**ELSEWHERE, "job": "8", "starts": [0, 0]}, False, id="another job"),
    ],
)
def test_who_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, object], taken: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    left_behind(tmp_path, **facts)  # pyright: ignore[reportArgumentType]
    lock = FolderLock(tmp_path)
    if taken:
        lock.acquire()
        assert lock.held
    else:
        with pytest.raises(LockedError):
            lock.acquire()
        assert read(tmp_path / FILE) is not None


def test_a_killed_process_is_taken_over_even_before_anybody_noticed(tmp_path: Path) -> None:
    hold = [sys.executable, "-c", HOLD, str(tmp_path)]
    with started(hold, subprocess.PIPE) as zombie:
        assert zombie.stdout is not None
        assert zombie.stdout.readline() == b"held\n"
        with pytest.raises(LockedError):
            FolderLock(tmp_path).acquire()
        zombie.kill()
        until(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE)
        with closing(FolderLock(tmp_path)) as lock:
            lock.acquire()


HOLD = """
import sys, time
from pathlib import Path
from graftwerk.lock import FolderLock
FolderLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(600)
"""


def no_hard_links(*names: Path) -> None:
    del names
    raise PermissionError(1, "Operation not permitted")


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "hardlink_to", no_hard_links)
    with closing(FolderLock(tmp_path)) as lock:
        lock.acquire()
        with pytest.raises(LockedError):
            FolderLock(tmp_path).acquire()


def test_a_process_that_was_taken_over_ends_without_saving(tmp_path: Path) -> None:
    code = HOLD.replace("FolderLock(Path(sys.argv[1])).acquire()", KEEP)
    keep = [sys.executable, "-c", code, str(tmp_path)]
    with started(keep, subprocess.PIPE, errors=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        left_behind(tmp_path, **ELSEWHERE)  # pyright: ignore[reportArgumentType]
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2
    assert b"was taken over by process 1 on node7" in said
    assert read(tmp_path / FILE) is not None


KEEP = """
from graftwerk import lock
lock.BEAT = 0.05
folder_lock = FolderLock(Path(sys.argv[1]))
folder_lock.acquire()
folder_lock.keep(lambda: False)
"""


def test_second_process_in_a_run_folder_is_refused(tmp_path: Path) -> None:
    words = ["run", TINY, "steps=1000", "objective=unhurried", "log.folder=runs", "log.every=1"]
    words += ["evaluate.every=1000", "log.console=quiet"]
    runs, out = tmp_path / "runs", tmp_path / "out"
    with Forked(*words, out=out, cwd=tmp_path) as training:
        until(lambda: steps(runs), training, out.read_text)
        folder = only_run(runs)
        before = (folder / "run.json").read_bytes()
        for more in ([], ["resume=never"]):
            second = graftwerk(*words, *more, "save.keep=7", cwd=tmp_path)
            assert second.returncode == 2
            assert "trains here since" in second.stderr
            assert "Traceback" not in second.stderr
        assert only_run(runs) == folder
        assert (folder / "run.json").read_bytes() == before
        training.send_signal(signal.SIGTERM)
        assert training.wait() == 75, out.read_text()
    assert not (folder / FILE).exists()
