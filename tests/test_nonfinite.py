"""A step whose loss or gradients are not finite leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from doubles import Halving, Poisoned, tiny
from graftwerk.axes import World
from graftwerk.errors import DivergedError
from graftwerk.models.config import Model
from graftwerk.nonfinite import Guard
from graftwerk.parts import Parts
from graftwerk.run import Run
from graftwerk.seeding import seed_everything
from graftwerk.sparsity.config import Dst
from running import configured, differences, newest_state, only_run, records, train_here

SKIPPED = 3
KEYS: dict[str, Any] = {"steps": 6, "augment__mixup": 0, "save__keep": 10, "log__every": 1}


def poisoned(**keys: Any) -> Run:
    """A run with BatchNorm whose step number `SKIPPED`, counted from 0, meets a poisoned image."""
    (image,) = images_of_step(SKIPPED)[:1]
    return tiny().model_copy(
        update={"objective": Poisoned(images=(image,), **keys), "model": Model(name="test_resnet")}
    )


def images_of_step(step: int, run: Run | None = None) -> list[int]:
    parts = (run or tiny()).build(World())
    return parts.plan.order.batch(step)[:, 1].tolist()


def skipped(folder: Path) -> list[dict[str, Any]]:
    return [r for r in records(only_run(folder), "event") if r["event"] == "step_skipped"]


def by_hand(parts: Parts, seed: int, without: int) -> None:
    """The loop of a person who knows which step to leave out."""
    parts.begin()
    parts.objective.train()
    batches = parts.train_batches(0)
    parameters = [p for group in parts.optimizer.param_groups for p in group["params"]]
    for step in parts.steps(0):
        seed_everything(seed, step.number, 0)
        parts.apply_schedules(step)
        micros = [next(batches) for _ in range(parts.plan.accumulate)]
        if step.number == without:
            continue
        for micro in micros:
            (parts.objective(parts.to_device(micro)).loss / len(micros)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, parts.run.optim.clip or 0)
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        assert parts.ema is not None
        parts.ema.update(parts.objective.net, step.number)


@pytest.mark.parametrize("spoils", ["loss", "gradient"])
def test_equals_a_loop_that_leaves_the_step_out(tmp_path: Path, spoils: str) -> None:
    run = poisoned(spoils=spoils)
    train_here(run, tmp_path / "run", **KEYS)
    _, state = newest_state(only_run(tmp_path / "run"))
    parts = configured(run, tmp_path, **KEYS).build(World())
    by_hand(parts, run.seed, without=SKIPPED)
    expected = parts.state_dict()
    for part in ("objective", "optimizer", "ema"):
        assert differences(state["parts"][part], expected[part]) == [], part
    (event,) = skipped(tmp_path / "run")
    assert (event["step"], event["rank"]) == (SKIPPED + 1, 0)
    assert set(event["images"]) <= set(images_of_step(SKIPPED))
    assert len(event["images"]) == (16 if spoils == "loss" else 64)
    losses = [record["loss"] for record in records(only_run(tmp_path / "run"), "train")]
    assert [loss is None for loss in losses] == [step == SKIPPED for step in range(6)]


@pytest.mark.parametrize("step", [2, 3, 5])
def test_resumes_with_the_same_bits(tmp_path: Path, step: int) -> None:
    """Long before the step that is left out, right before it, and after it."""
    run = poisoned()
    keys = KEYS | {"save__every": "1 step"}
    train_here(run, tmp_path / "whole", **keys)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for later in range(step + 1, 7):
        entry = only_run(tmp_path / "again") / "checkpoints" / f"step-{later:08d}"
        assert entry.exists() is (later != SKIPPED + 1)  # none while steps are left out
        shutil.rmtree(entry, ignore_errors=True)
    train_here(run, tmp_path / "again", **keys)
    states = [newest_state(only_run(tmp_path / name))[1] for name in ("whole", "again")]
    assert differences(states[0], states[1]) == []


@pytest.mark.parametrize("sparsity", [Halving(every=1), Dst(every=2, density=0.5)])
def test_masks_are_chosen_by_steps_that_count(tmp_path: Path, sparsity: Any) -> None:
    """Dst updates its masks at step 4, which is left out, and so a step later."""
    run = poisoned().model_copy(update={"sparsity": sparsity, "model": tiny().model})
    train_here(run, tmp_path, **KEYS)
    _, state = newest_state(only_run(tmp_path))
    assert len(skipped(tmp_path)) == 1
    tensors = [t for t in state["parts"]["objective"].values() if t.is_floating_point()]
    assert all(bool(t.isfinite().all()) for t in tensors)
    assert state["parts"]["sparsity"]["masks"]


def test_overflows_of_fp16_are_told_and_are_the_scale_s_to_mend(tmp_path: Path) -> None:
    run = tiny().model_copy(update={"objective": Poisoned(images=tuple(range(2000)))})
    keys = KEYS | {"precision": "fp16", "steps": 12, "faults__patience": 1}
    train_here(run, tmp_path, **keys)
    assert len(skipped(tmp_path)) == 12
    assert newest_state(only_run(tmp_path))[1]["parts"]["precision"]["scale"] == 2**16 / 2**12


def test_the_norm_of_gradients_decides() -> None:
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    assert isinstance(seed, int)
    generator = torch.Generator().manual_seed(seed % 2**63)
    net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    guard = Guard(net, torch.optim.SGD(net.parameters(), 0.1))
    for value in (1.0, 1e18, torch.nan, torch.inf, -torch.inf):
        before = [buffer.clone() for buffer in net.buffers()]
        guard.begin()
        net(torch.randn(8, 5, generator=generator))
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        chosen = list(net.parameters())[int(torch.randint(4, (), generator=generator))]
        assert chosen.grad is not None
        chosen.grad.view(-1)[-1] = value
        assert guard.passes() is bool(np.isfinite(value))
        same = [torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True)]
        assert all(same) is not bool(np.isfinite(value))


def test_a_run_whose_loss_stays_infinite_ends_with_a_code_of_its_own(tmp_path: Path) -> None:
    keys = {"steps": 4, "optim__lr": 1e30, "faults__patience": 2, "faults__rollbacks": 0}
    with pytest.raises(
        DivergedError, match=r"(?s)not finite in steps 2 to 3.*rollbacks=0.*optim.lr"
    ) as error:
        train_here(tiny(), tmp_path, **keys)
    assert error.value.exit_code == 65
