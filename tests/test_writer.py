"""Saves that run beside training: what is written is the state at the boundary, no later one."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwerk import checkpoint
from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints, State
from graftwerk.snapshot import Snapshot
from graftwerk.writer import FAR, Writer
from running import differences
from workers import together


def state_of(step: int, rank: int = 0) -> State:
    weight = torch.full((300,), float(step + rank))
    return {"parts": {"weight": weight, "sync": {}}, "step": step}


class Held(Checkpoints):
    """A disk that is as slow as a test wants."""

    def __init__(self, folder: Path, world: World, *, keep: int = 9) -> None:
        super().__init__(folder, world, keep=keep)
        self.gate = threading.Event()

    def write_shard(self, step: int, state: State | None) -> State | str | None:
        assert self.gate.wait(60)
        return super().write_shard(step, state)


def begin(writer: Writer, step: int, state: State | None) -> None:
    writer.begin(step, state, facts={}, best=None)


def test_training_goes_on_and_the_boundary_is_what_is_saved(tmp_path: Path) -> None:
    checkpoints = Held(tmp_path, World())
    writer = Writer(checkpoints, World(), replicated=True)
    state = state_of(3)
    begin(writer, 3, state)
    state["parts"]["weight"].fill_(-1)  # the next step
    state["step"] = 4
    writer.follow(writer.flag(4))
    assert writer.outcomes() == []
    assert checkpoints.entries() == []
    checkpoints.gate.set()
    writer.finish()
    (outcome,) = writer.outcomes()
    assert (outcome.step, outcome.problems) == (3, [])
    found, manifest, _ = checkpoints.resume(replicated=True)
    assert found is not None
    assert manifest["step"] == found["step"] == 3
    assert torch.equal(found["parts"]["weight"], torch.full((300,), 3.0))


def test_never_more_than_one_behind(tmp_path: Path) -> None:
    checkpoints = Held(tmp_path, World())
    writer = Writer(checkpoints, World(), replicated=True)
    begin(writer, 1, state_of(1))
    second = threading.Thread(target=begin, args=(writer, 2, state_of(2)))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert checkpoints.entries() == []
    checkpoints.gate.set()
    second.join(60)
    assert checkpoints.path(1).exists()
    writer.finish()
    assert [outcome.step for outcome in writer.outcomes()] == [1, 2]


def test_a_failure_is_an_outcome_and_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "gone" / "checkpoints", World(), keep=2)
    writer = Writer(checkpoints, World(), replicated=True)
    begin(writer, 1, state_of(1))
    writer.finish()
    (outcome,) = writer.outcomes()
    assert "the folder is gone" in outcome.problems[0]
    assert not list(tmp_path.iterdir())
    (tmp_path / "gone").mkdir()
    begin(writer, 2, state_of(2))
    writer.finish()
    assert writer.outcomes()[0].problems == []


def test_ranks_that_differ_wait_for_the_slowest_without_being_held_up(tmp_path: Path) -> None:
    def work(world: World) -> list[tuple[int, bool]]:
        checkpoints = Held(tmp_path, world)
        writer = Writer(checkpoints, world, replicated=False)
        seen: list[tuple[int, bool]] = []
        if world.rank != 2:
            checkpoints.gate.set()
        assert world.control is not None
        for done in range(1, 30):
            (written,) = world.control.boundary([writer.flag(done)])
            writer.follow(written)
            seen.append((done, checkpoints.path(5).exists()))
            if done == 5:
                begin(writer, 5, state_of(5, world.rank))
            if done == 15 and world.rank == 2:
                checkpoints.gate.set()
        writer.finish()
        return seen

    (seen, *_) = together(3, work)
    assert not any(there for done, there in seen if done <= 14)
    found = Checkpoints(tmp_path, World(), keep=9).entries()
    assert [entry.step for entry in found] == [5]
    assert found[0].verify()["files"].keys() == {"rank0.pt", "rank1.pt", "rank2.pt"}
    assert found[0].state()["parts"]["weight"][0] == 6  # the mean of 5, 6 and 7


def test_a_folder_may_vanish_just_when_a_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"

    def unplug(place: Path) -> None:
        place.rename(tmp_path / "gone")

    monkeypatch.setattr(checkpoint, "sync_folder", unplug)
    writer = Writer(Checkpoints(folder, World(), keep=1), World(), replicated=True)
    begin(writer, 1, state_of(1))
    writer.finish()
    assert [outcome.problems for outcome in writer.outcomes()] == [[]]
    assert (tmp_path / "gone" / "step-00000001" / "manifest.json").exists()


def test_one_rank_that_cannot_write_is_everybodys_failure(tmp_path: Path) -> None:
    class Broken(Checkpoints):
        def write_shard(self, step: int, state: State | None) -> State | str | None:
            return "no room" if self._world.rank == 1 else super().write_shard(step, state)

    def work(world: World) -> list[list[str]]:
        writer = Writer(Broken(tmp_path, world, keep=1), world, replicated=False)
        begin(writer, 1, state_of(1))
        writer.finish()
        return [outcome.problems for outcome in writer.outcomes()]

    assert together(3, work) == [[["no room"]], [], []]
    assert not list(tmp_path.iterdir())


def test_flags_say_what_is_not_written_yet(tmp_path: Path) -> None:
    checkpoints = Held(tmp_path, World())
    writer = Writer(checkpoints, World(), replicated=False)
    assert writer.flag(4) == FAR - 4
    begin(writer, 4, state_of(4))
    assert writer.flag(7) == FAR - 4
    checkpoints.gate.set()
    writer.finish()
    assert writer.flag(8) == FAR - 8


def a_state() -> State:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return {
        "net": net.state_dict(),
        "images": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.arange(6).reshape(2, 3).t(),
        "leaf": torch.randn(4, requires_grad=True),
        "nested": [torch.tensor(1), (torch.tensor(2.0), "text", None), {1: [True]}],
    }


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [t for item in items for t in tensors(item)] if isinstance(value, dict | list) else []


def test_a_snapshot_is_equal_and_shares_nothing() -> None:
    snapshot = Snapshot()
    for _ in range(2):  # the second time, memory is there already
        state = a_state()
        before, taken = copy.deepcopy(state), snapshot.take(state)
        for tensor in tensors(state):
            tensor.detach().zero_()
        state["nested"][2][1].append(False)
        assert differences(taken, before) == []
        strides = [tensor.stride() for tensor in tensors(before)]
        assert [tensor.stride() for tensor in tensors(taken)] == strides
        assert not any(tensor.requires_grad for tensor in tensors(taken))
        assert taken["net"]._metadata == state["net"]._metadata


def test_a_snapshot_follows_a_state_that_changes_its_shape() -> None:
    snapshot = Snapshot()
    for size in (3, 5, 2):
        state = {"weight": torch.randn(size), "sparse": torch.eye(size).to_sparse_csr()}
        taken = snapshot.take(state)
        assert torch.equal(taken["weight"], state["weight"])
        assert torch.equal(taken["sparse"].to_dense(), torch.eye(size))
