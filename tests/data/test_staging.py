from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from doubles import tiny
from graftwerk.config import load
from graftwerk.data import manifest
from graftwerk.data.config import Data
from graftwerk.data.staging import local_disk, stage, staged
from graftwerk.errors import DataError
from graftwerk.start import start
from running import configured, started, until
from trees import same, tree, write_files, write_tar

SLOW = """
import os, sys, time
from pathlib import Path
from graftwerk.data.staging import stage

def slowly(count):
    Path(f"{sys.argv[3]}/{os.getpid()}").touch()
    while not Path(f"{sys.argv[3]}.killed").exists():
        time.sleep(0.01)

print(stage(Path(sys.argv[1]), Path(sys.argv[2]), slowly))
"""


def copies(disk: Path) -> list[Path]:
    return [path for path in disk.glob("graftwerk-*/*") if path.is_dir()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.jpg")}


@pytest.fixture
def source(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_files(tree(rng), tmp_path / "source")


def test_a_copy_is_whole_and_used_again(tmp_path: Path, source: Path):
    disk, read = tmp_path / "disk", list[int]()
    first = stage(source, disk, read.append)
    assert files_of(first) == files_of(source)
    assert sum(read) == sum(map(len, files_of(source).values()))
    assert stage(source, disk, read.append) == first
    assert sum(read) == sum(map(len, files_of(source).values()))
    assert copies(disk) == [first]


def test_changed_data_is_another_copy(tmp_path: Path, source: Path):
    first = stage(source, tmp_path / "disk")
    (source / "train/ant/00.jpg").write_bytes(b"another")
    second = stage(source, tmp_path / "disk")
    assert second != first
    assert files_of(second) == files_of(source)


def test_an_archive_comes_with_its_index(tmp_path: Path, rng: np.random.Generator):
    path = write_tar(tree(rng), tmp_path / "a.tar")
    before = load(Data, {"kind": "tar", "path": path}).open(0)
    data = load(Data, {"kind": "tar", "path": path, "stage": str(tmp_path / "disk")})
    after = data.open(0)
    assert same(after, before)
    assert str(tmp_path / "disk") in after.train.name(0)
    (copy,) = copies(tmp_path / "disk")
    index = copy / "a.tar.index"
    assert index.read_bytes() == (tmp_path / "a.tar.index").read_bytes()


def test_of_four_processes_one_is_killed_and_one_copy_is_left(tmp_path: Path, source: Path):
    disk, marks = tmp_path / "disk", tmp_path / "marks"
    marks.mkdir()
    words = [sys.executable, "-c", SLOW, str(source), str(disk), str(marks)]
    with ExitStack() as stack:
        processes = [stack.enter_context(started(words, subprocess.PIPE)) for _ in range(4)]
        (mark,) = until(lambda: list(marks.iterdir()))
        first = int(mark.name)
        os.kill(first, signal.SIGKILL)
        (tmp_path / "marks.killed").touch()
        others = [process for process in processes if process.pid != first]

        def ended() -> bool:
            for copy in copies(disk):
                assert copy.suffix == ".partial" or files_of(copy) == files_of(source)
            return all(process.poll() is not None for process in others)

        until(ended)
        told = {process.communicate()[0].decode().strip() for process in others}
        assert [process.returncode for process in others] == [0, 0, 0]
    (copy,) = copies(disk)
    assert told == {str(copy)}
    assert files_of(copy) == files_of(source)
    assert len(list(marks.iterdir())) == 2  # the killed one, and one of the others


def test_what_the_manifest_denies_is_not_staged(tmp_path: Path, source: Path):
    names = sorted(files_of(source))
    manifest.write(source, [manifest.describe(source, name) for name in names])
    stage(source, tmp_path / "one")
    damaged = bytearray((source / names[3]).read_bytes())
    damaged[40] ^= 1
    (source / names[3]).write_bytes(damaged)
    with pytest.raises(DataError, match=rf"{names[3]}: damaged after byte 0, says the manifest"):
        stage(source, tmp_path / "two")
    assert copies(tmp_path / "two") == []


def test_a_disk_without_room_is_left_alone(tmp_path: Path, source: Path):
    with (source / "train/ant/huge.jpg").open("wb") as file:
        file.truncate(max(shutil.disk_usage(tmp_path).free, 1 << 30) + 1)  # a hole
    warned: list[str] = []
    disk = str(tmp_path / "disk")
    assert staged(source, disk, warned.append) == source
    assert f"data.stage: {source} can't be copied to {disk} (" in warned[0]
    assert "are to be copied); reading it where it is" in warned[0]
    assert copies(tmp_path / "disk") == []


def _small_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))


def test_a_copy_that_can_not_be_written_leaves_nothing(tmp_path: Path, source: Path):
    code = (
        "import sys; from pathlib import Path; from graftwerk.data.staging import staged\n"
        "print(staged(Path(sys.argv[1]), sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "disk")],
        preexec_fn=_small_files,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(source)
    assert "File too large); reading it where it is" in done.stderr
    assert copies(tmp_path / "disk") == []


def test_without_a_local_disk_the_data_is_read_where_it_is(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    warned: list[str] = []
    assert staged(source, "auto", warned.append) == source
    assert warned == [
        f"data.stage=auto: none of SLURM_TMPDIR, TMPDIR is set; reading {source} itself"
    ]
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "job"))
    assert local_disk("auto") == tmp_path / "job"


def test_a_staged_run_is_the_same_run(tmp_path: Path, source: Path):
    keys = {"data": "folder", "data.path": str(source), "batch.size": 4, "batch.micro": 4}
    keys |= {"augment.size": 32, "data.workers": 0, "steps": 1}
    near = configured(tiny(), tmp_path, **keys, **{"data.stage": str(tmp_path / "disk")})
    far = configured(tiny(), tmp_path, **keys)
    assert near.folder == far.folder
    start(near)
    assert len(copies(tmp_path / "disk")) == 1
    assert near.folder.exists()
