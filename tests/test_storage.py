"""Full disks, and folders that vanish or are read-only: training goes on, saved states stay."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from graftwerk.storage import problem
from running import TINY, Forked, checkpoints, newest_state, only_run, records, until

WORDS = ["steps=100000", "save=1 step", "evaluate.every=100000", "log.every=1"]
QUICK = ["save.patience=0.1", "log.tensorboard=false"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "free space there"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EROFS, "read-only"),
        (errno.ESTALE, "mount it again"),
        (errno.ENAMETOOLONG, "MiB free"),
    ],
)
def test_a_problem_says_what_to_do(tmp_path: Path, code: int, said: str) -> None:
    def fail() -> None:
        try:
            raise OSError(code, os.strerror(code))
        except OSError as error:
            raise RuntimeError("PytorchStreamWriter failed\nwith a long trace") from error

    with pytest.raises(RuntimeError) as caught:
        fail()
    text = problem(tmp_path / "a" / "b" / "rank0.pt", caught.value)
    assert os.strerror(code) in text
    assert said in text
    assert "\n" not in text


class Training(Forked):
    """A run in a process of its own."""

    def __init__(self, folder: Path, out: Path, *words: str) -> None:
        self.out = out
        super().__init__("run", TINY, *WORDS, *QUICK, f"log.folder={folder}", *words, out=out)

    def until(self, there: Callable[[], object]) -> None:
        until(there, self, self.out.read_text)

    def stop(self) -> int:
        self.send_signal(signal.SIGTERM)
        return self.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, training: Training) -> Path:
    """Leave no room at all, until a save has failed; a checkpoint that goes later makes room."""
    ballast = folder / "ballast"

    def failed() -> bool:
        with suppress(OSError), ballast.open("ab", buffering=0) as file:
            while file.write(bytes(2**16)):
                pass
        return "save failed" in training.out.read_text()

    training.until(failed)
    return ballast


def test_a_full_disk_ends_no_run_and_is_forgotten_when_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    with Training(small_disk, tmp_path / "out") as training:
        training.until(lambda: len(checkpoints(small_disk)) > 1)
        ballast = fill(small_disk, training)
        newest = checkpoints(small_disk)[-1]
        assert newest_state(only_run(small_disk))[0] == newest
        ballast.unlink()
        training.until(lambda: checkpoints(small_disk)[-1] > newest)
        training.until(lambda: records(only_run(small_disk), "train")[-1]["step"] > newest)
        assert training.stop() == 75, training.out.read_text()
        said = training.out.read_text()
        assert "free space there" in said
        assert "Traceback" not in said
        newest_state(only_run(small_disk))
        assert not list(small_disk.glob("*/checkpoints/.*"))


def test_the_last_save_fails_with_a_message_and_a_code(tmp_path: Path, small_disk: Path) -> None:
    with Training(small_disk, tmp_path / "out") as training:
        training.until(lambda: checkpoints(small_disk))
        ballast = fill(small_disk, training)
        assert training.stop() == 74
        newest = checkpoints(small_disk)[-1]
        said = training.out.read_text()
        assert f"once there is room, the same command goes on after step {newest}" in said
        assert "Traceback" not in said
    ballast.unlink()
    with Training(small_disk, tmp_path / "again") as again:
        again.until(lambda: checkpoints(small_disk)[-1] > newest)
        assert again.stop() == 75
    assert "resumed" in again.out.read_text()


def test_a_folder_that_vanishes_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    with Training(folder, tmp_path / "out") as training:
        training.until(lambda: checkpoints(folder))
        run = only_run(folder)
        run.rename(tmp_path / "elsewhere")
        training.until(lambda: "the folder is gone" in training.out.read_text())
        assert not run.exists()  # it might be a disk that is not mounted
        (tmp_path / "elsewhere").rename(run)
        newest = checkpoints(folder)[-1]
        training.until(lambda: checkpoints(folder)[-1] > newest)
        assert training.stop() == 75, training.out.read_text()


def test_a_second_signal_leaves_at_once_and_the_last_checkpoint_stays(
    tmp_path: Path, small_disk: Path
) -> None:
    with Training(small_disk, tmp_path / "out", "save.patience=600") as training:
        training.until(lambda: checkpoints(small_disk))
        fill(small_disk, training)
        said = training.out.read_text().count("save failed")
        training.send_signal(signal.SIGTERM)
        training.until(lambda: training.out.read_text().count("save failed") > said + 1)
        training.send_signal(signal.SIGTERM)
        assert training.wait() == -signal.SIGTERM
        newest_state(only_run(small_disk))


def test_a_disk_that_becomes_read_only(tmp_path: Path, small_disk: Path) -> None:
    with Training(small_disk, tmp_path / "out") as training:
        training.until(lambda: checkpoints(small_disk))
        newest = checkpoints(small_disk)[-1]
        folder = str(only_run(small_disk) / "checkpoints")
        bind = ["mount", "--bind", folder, folder]
        subprocess.run(bind, check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
            training.until(lambda: "Read-only file system" in training.out.read_text())
            subprocess.run(["mount", "-o", "remount,rw,bind", folder], check=True)
            training.until(lambda: checkpoints(small_disk)[-1] > newest + 1)
            assert training.stop() == 75
        finally:
            subprocess.run(["umount", "-l", folder], check=False)
