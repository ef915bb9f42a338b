from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints, Entry, read_tensors
from graftwerk.errors import CheckpointError, StorageError


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", World(), keep=2)


def save(checkpoints: Checkpoints, step: int, *, best: bool = False, size: int = 1000) -> Path:
    state = {"weight": torch.full((size,), float(step)), "step": step}
    return checkpoints.save(
        step, state, facts={"finished": False}, best={"top1": 0.5} if best else None
    )


def newest_step(checkpoints: Checkpoints) -> tuple[int, list[str]]:
    state, manifest, rejected = checkpoints.resume(replicated=True)
    assert state is not None
    assert state["step"] == manifest["step"]
    assert torch.equal(state["weight"], torch.full((1000,), float(state["step"])))
    return manifest["step"], rejected


def test_newest_is_resumed_and_old_ones_rotate(checkpoints: Checkpoints) -> None:
    for step in (5, 10, 15, 20):
        save(checkpoints, step)
    assert [entry.step for entry in checkpoints.entries()] == [20, 15]
    assert newest_step(checkpoints) == (20, [])


def test_where_ranks_learn_late_of_a_bad_step_a_checkpoint_of_before_it_stays(
    tmp_path: Path,
) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", World(), keep=2, late=4)
    kept: list[list[int]] = []
    for step in (2, 4, 6, 8, 10, 20):
        save(checkpoints, step)
        kept.append([entry.step for entry in checkpoints.entries()])
    assert kept[2:] == [[6, 4, 2], [8, 6, 4], [10, 8, 6], [20, 10]]


def test_best_outlives_rotation(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, best=True)
    for step in (2, 3, 4):
        save(checkpoints, step)
    assert [entry.step for entry in checkpoints.entries()] == [4, 3, 1]
    best = checkpoints.best()
    assert best is not None
    assert best.step == 1


def test_nothing_saved_is_nothing_resumed(checkpoints: Checkpoints) -> None:
    assert checkpoints.resume(replicated=True) == (None, {}, [])


def truncate(entry: Entry) -> None:
    path = entry.folder / "rank0.pt"
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(entry: Entry) -> None:
    path = entry.folder / "rank0.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose_the_file(entry: Entry) -> None:
    (entry.folder / "rank0.pt").unlink()


def lose_the_manifest(entry: Entry) -> None:
    (entry.folder / "manifest.json").unlink()


def half_a_manifest(entry: Entry) -> None:
    os.truncate(entry.folder / "manifest.json", 20)


def foreign_manifest(entry: Entry) -> None:
    (entry.folder / "manifest.json").write_text("[1, 2]")


DAMAGES = [
    truncate,
    flip_a_bit,
    lose_the_file,
    lose_the_manifest,
    half_a_manifest,
    foreign_manifest,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_is_passed_over_with_its_name(
    checkpoints: Checkpoints, damage: Callable[[Entry], None]
) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)
    damage(checkpoints.entries()[0])
    step, rejected = newest_step(checkpoints)
    assert step == 1
    assert len(rejected) == 1
    assert "step-00000002" in rejected[0]


def test_only_damaged_ones_are_refused_not_forgotten(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    truncate(checkpoints.entries()[0])
    with pytest.raises(CheckpointError, match="none of its checkpoints is intact"):
        checkpoints.resume(replicated=True)
    assert checkpoints.entries()


def test_an_interrupted_write_is_invisible(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    partial = checkpoints.folder / ".step-00000002.partial"
    partial.mkdir()
    (partial / "rank0.pt").write_bytes(b"half")
    assert newest_step(checkpoints) == (1, [])
    save(checkpoints, 2)
    assert newest_step(checkpoints) == (2, [])


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """The kernel refuses to let a file grow beyond the limit, as a full disk or a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_no_room_for_a_new_one_leaves_the_old_one(
    checkpoints: Checkpoints, file_size_limit: Callable[[int], None]
) -> None:
    save(checkpoints, 1)
    file_size_limit(20_000)
    with pytest.raises(StorageError, match=r"step 2 not saved:\n.*MiB free.*is intact") as caught:
        save(checkpoints, 2, size=100_000)
    assert caught.value.exit_code == 74
    assert newest_step(checkpoints) == (1, [])
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model": Trap()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="never executes"):
        read_tensors(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()
