"""Sparse execution computes what masking computes, and keeps only what exists."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import doubles
from graftwerk import axes
from graftwerk.axes import Batch, Step
from graftwerk.config import load
from graftwerk.errors import CheckpointError, ConfigError
from graftwerk.objectives.supervised import Supervised
from graftwerk.optim.config import Optim
from graftwerk.optim.ema import Ema
from graftwerk.optim.optimizers import build_optimizer
from graftwerk.sparsity.config import Sparsity
from graftwerk.sparsity.execution import format_problem
from running import configured, differences, newest_state, records, train_again, train_here

TOTAL = 20


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 48),
        nn.Tanh(),
        nn.Linear(48, 8),
    )


def trained(
    execution: str | None,
    *,
    seed: int,
    steps: int = 12,
    optim: str = "sgd",
    make: Callable[[], nn.Module] = net,
    **keys: Any,
) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    objective = Supervised(make().double(), loss="ce", smoothing=0.0)
    objective.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(objective, Optim(name=optim, lr=0.01, weight_decay=0.01), 0.01)
    average = Ema(objective.net, decay=0.8)
    batches = [
        Batch(torch.randn(16, 2, 8, 8).double(), torch.randint(8, (16,)), torch.arange(16))
        for _ in range(TOTAL)
    ]
    tree = {"kind": "dst", "every": 4, "density": 0.25, "execution": execution} | keys
    sparsity: Any = load(Sparsity, tree).build()
    sparsity.attach(objective, optimizer, axes.Sync(), batches[0], seed=seed, total_steps=TOTAL)
    sparsity.net, sparsity.average = objective.net, average.module
    average.set(objective.net)
    for number in range(steps):
        step = Step(number, epoch=0, total=TOTAL, batch=batches[number])
        objective(batches[number]).loss.backward()
        sparsity.before_step(step)
        optimizer.step()
        sparsity.after_step(step)
        optimizer.zero_grad()
        average.update(objective.net, number)
        sparsity.after_average(average.module)
    return sparsity, optimizer


def same_network(one: Any, other: Any) -> None:
    """Masks, weights and their average."""
    for layer, of_other in zip(one.layers, other.layers, strict=True):
        assert torch.equal(layer.mask, of_other.mask)
    for name in ("net", "average"):
        states = [getattr(sparsity, name).state_dict() for sparsity in (one, other)]
        torch.testing.assert_close(*states, rtol=1e-9, atol=1e-11)


@pytest.fixture
def seed() -> int:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return seed


@pytest.mark.parametrize("optim", ["sgd", "adamw", "lion", "rmsproptf", "nadamw", "adagrad"])
@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_a_compact_optimizer_does_what_a_masked_one_does(optim: str, grow: str, seed: int) -> None:
    keys: dict[str, Any] = {"optim": optim, "grow": grow}
    keys["update"] = "before_step" if grow == "gradient" else "after_step"
    masked, _ = trained("masked", seed=seed, **keys)
    compact, _ = trained("compact", seed=seed, **keys)
    same_network(masked, compact)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "compact"),
        ({"optim": "adamw", "prune": "snip"}, "compact"),
        ({"optim": "lamb"}, "masked"),
        ({"density": 0.6}, "masked"),
        ({"start_density": 0.8}, "masked"),
        ({"grow": "momentum"}, "masked"),
        ({"redistribute": "momentum"}, "masked"),
        ({"fresh": False}, "masked"),
    ],
)
def test_what_is_used_where_nothing_is_asked_for(
    keys: dict[str, Any], expected: str, seed: int
) -> None:
    masked, _ = trained("masked", seed=seed, **keys)
    usual, _ = trained(None, seed=seed, **keys)
    assert usual.execution == expected
    same_network(masked, usual)


def test_fp16_is_masked_where_nothing_is_asked_for(seed: int) -> None:
    with torch.autocast("cpu", torch.float16):
        assert trained(None, seed=seed, steps=0)[0].execution == "masked"


@pytest.mark.parametrize("execution", ["masked", "compact"])
def test_a_checkpoint_says_what_was_used(execution: str, seed: int) -> None:
    state = trained(execution, seed=seed)[0].state_dict()
    other = "compact" if execution == "masked" else "masked"
    for asked in (None, other):
        begun, optimizer = trained("masked", seed=seed, steps=0)
        tree = {"kind": "dst", "every": 4, "density": 0.25, "execution": asked}
        again: Any = load(Sparsity, tree).build()
        again.bind(begun._objective, optimizer, axes.Sync(), seed=seed, total_steps=TOTAL)
        if asked is None:
            again.load_state_dict(state)
            assert again.execution == execution
            assert bool(again.compact) == (execution == "compact")
        else:
            with pytest.raises(CheckpointError, match=f"made with '{execution}', not '{other}'"):
                again.load_state_dict(state)


@pytest.mark.parametrize("prune", ["magnitude", "snip", "random", "running_magnitude"])
@pytest.mark.parametrize(
    ("execution", "structure"), [("csr", "unstructured"), ("csr", "fan_in"), ("bsr", "block8")]
)
def test_sparse_matrices_train_the_same_network(
    execution: str, structure: str, prune: str, seed: int
) -> None:
    keys: dict[str, Any] = {"structure": structure, "prune": prune, "exclude": ["0"]}
    masked, _ = trained("masked", seed=seed, **keys)
    sparse, _ = trained(execution, seed=seed, **keys)
    assert [e.form for e in sparse.executions] == [execution] * 2
    same_network(masked, sparse)


def test_weights_sleep_where_products_need_none(seed: int) -> None:
    sparsity, optimizer = trained("csr", seed=seed, steps=5, exclude=["0"])
    for layer in sparsity.layers:
        assert layer.weight.numel() == 0
        assert sum(layer.mask.flatten()) == layer.active
    kept = [*sparsity.net.parameters(), *(c.values for c in sparsity.compact)]
    kept += [value for own in optimizer.state.values() for value in own.values()]
    sizes = sum(layer.size for layer in sparsity.layers)
    biases = 48 + 8 + 8 + 8 * 18
    assert sum(tensor.numel() for tensor in kept) <= 2 * (0.25 * sizes + biases) + 1
    for state in (sparsity.net.state_dict(), sparsity._objective.state_dict(prefix="a.")):
        shapes = [tuple(value.shape) for name, value in state.items() if name.endswith("weight")]
        assert shapes == [(8, 2, 3, 3), (48, 72), (8, 48)]
    woken, _ = trained("csr", seed=seed, steps=7, exclude=["0"])  # the next one updates masks
    assert [layer.weight.numel() for layer in woken.layers] == [
        layer.size for layer in woken.layers
    ]
    running, _ = trained("csr", seed=seed, steps=5, prune="running_magnitude", exclude=["0"])
    assert all(layer.weight.numel() for layer in running.layers)


class Aside(nn.Module):
    """Reads the weight of a layer past its forward pass, as some attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(128, 48), nn.Linear(48, 8)

    def forward(self, images_nchw: Tensor) -> Tensor:
        x = F.linear(images_nchw.flatten(1), self.inner.weight)
        return self.outer(torch.tanh(x))


def test_weights_that_others_multiply_stay_dense(seed: int) -> None:
    masked, _ = trained("masked", seed=seed, make=Aside)
    sparse, _ = trained("csr", seed=seed, make=Aside)
    assert [execution.compact.layer.name for execution in sparse.executions] == ["outer"]
    same_network(masked, sparse)


def test_only_existing_weights_have_gradients_and_state(seed: int) -> None:
    sparsity, optimizer = trained("csr", seed=seed, optim="adamw", steps=6)
    for layer, compact in zip(sparsity.layers, sparsity.compact, strict=True):
        assert layer.weight.grad is None
        assert layer.weight not in optimizer.state
        assert optimizer.state[compact.values]["exp_avg"].numel() == layer.active
    seen = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not seen & {id(layer.weight) for layer in sparsity.layers}


def test_gradients_of_all_weights_live_until_their_layer_is_done(seed: int) -> None:
    """A backward pass of two micro-batches, before a step without an update."""
    kept: list[Tensor] = []
    for execution in ("masked", "compact"):
        sparsity, _ = trained(execution, seed=seed, steps=5)
        objective = sparsity._objective
        torch.manual_seed(seed)
        for _ in range(2):
            images = torch.randn(6, 2, 8, 8).double()
            objective(Batch(images, torch.arange(6), torch.arange(6))).loss.backward()
        if execution == "masked":
            kept = [layer.weight.grad[layer.mask] for layer in sparsity.layers]
    for layer, compact, expected in zip(sparsity.layers, sparsity.compact, kept, strict=True):
        assert layer.weight.grad is None
        found = layer.dense(compact.values.grad, layer.index())[layer.mask]
        if layer.weight.is_contiguous():  # channels-last weights are gathered in memory's order
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_auto_measures_and_remembers(seed: int) -> None:
    sparsity, _ = trained("auto", seed=seed, steps=2, structure="block8", exclude=["0"])
    forms = sparsity.state_dict()["forms"]
    assert set(forms) == {"3", "5"}
    assert set(forms.values()) <= {"dense", "csr", "bsr"}


def test_auto_says_what_it_chose_and_why(seed: int) -> None:
    keys: dict[str, Any] = {"structure": "2:4", "density": 0.5, "exclude": ["0"]}
    sparsity, _ = trained("auto", seed=seed, steps=2, **keys)
    for execution, note in zip(sparsity.executions, sparsity.notes(), strict=True):
        assert set(execution.times) == {"dense", "csr"}  # 2:4 products exist on GPUs alone
        assert execution.times[execution.form] == min(execution.times.values())
        name = execution.compact.layer.name
        assert re.fullmatch(rf"{name}: {execution.form} \(dense .+ ms, csr .+ ms\)", note)
    assert trained("csr", seed=seed, steps=0, exclude=["0"])[0].notes() == []


def test_auto_is_masked_where_the_optimizer_sees_matrices(seed: int) -> None:
    masked, _ = trained("masked", seed=seed, optim="lamb")
    auto, _ = trained("auto", seed=seed, optim="lamb")
    assert auto.notes() == ["all layers: masked (Lamb needs whole matrices)"]
    same_network(masked, auto)


def test_a_form_that_the_device_lacks_is_replaced_by_the_dense_one(seed: int) -> None:
    keys: dict[str, Any] = {"structure": "2:4", "density": 0.5, "exclude": ["0"]}
    sparsity, _ = trained("auto", seed=seed, steps=2, **keys)
    state = sparsity.state_dict()
    state["forms"] = {"3": "semi_structured", "5": "csr"}
    other, _ = trained("auto", seed=seed, steps=0, **keys)
    other.load_state_dict(state)
    assert [execution.form for execution in other.executions] == ["dense", "csr"]


@pytest.mark.parametrize(
    ("shape", "device", "capability", "problem"),
    [
        ((64, 128), "cuda", (8, 0), None),
        ((64, 128), "cuda", (9, 0), None),
        ((64, 128), "cpu", None, "needs an NVIDIA GPU, and this run is on cpu"),
        ((64, 128), "cuda", (7, 5), "needs a GPU of compute capability 8.0"),
        ((10, 128), "cuda", (8, 6), "needs sides that are multiples of 64"),
    ],
)
def test_where_two_of_four_products_exist(
    shape: tuple[int, int], device: str, capability: tuple[int, int] | None, problem: str | None
) -> None:
    found = format_problem(shape, device, capability)
    assert (found or "").startswith(problem or "")
    assert (found is None) == (problem is None)


def test_auto_is_told_in_the_log(tmp_path: Path) -> None:
    keys = {"sparsity": "static", "sparsity__execution": "auto", "precision": "bf16"}
    run = configured(doubles.tiny(), tmp_path, **keys, steps=1)
    train_here(run, tmp_path)
    event = next(e for e in records(run.folder, "event") if e["event"] == "execution")
    assert len(event["note"]) > 1
    assert re.fullmatch(r"[\w.]+: (dense|csr) \(dense .+ ms, csr .+ ms\)", event["note"][-1])


@pytest.mark.parametrize("execution", ["compact", "csr"])
def test_a_run_goes_on_with_the_same_bits(execution: str, tmp_path: Path) -> None:
    keys = {"sparsity": "dst", "sparsity__every": 3, "sparsity__execution": execution}
    run = configured(doubles.tiny(), tmp_path, **keys, log__tensorboard=False)
    train_here(run, tmp_path)
    step, whole = newest_state(run.folder)
    train_again(run, after=8)
    assert newest_state(run.folder)[0] == step == 10
    assert differences(whole, newest_state(run.folder)[1]) == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"execution": "bsr"}, "execution=bsr multiplies blocks: set structure"),
        ({"execution": "compact", "grow": "momentum"}, "keeps no momentum of weights"),
        ({"execution": "csr", "prune": "running_snip"}, "running_snip needs all gradients"),
        (
            {"execution": "semi_structured", "structure": "fan_in"},
            "execution=semi_structured is for structure=2:4",
        ),
        (
            {"execution": "semi_structured", "structure": "2:4", "density": 0.5, "exclude": ["0"]},
            "'semi_structured' needs an NVIDIA GPU, and this run is on cpu",
        ),
        ({"execution": "csr", "include": ["0"]}, "is for linear layers, and none is sparse"),
        ({"execution": "compact", "optim": "lamb"}, "Lamb looks at their whole matrix"),
    ],
)
def test_what_does_not_go_together_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trained(seed=0, steps=0, **keys)


def test_two_of_four_products_are_in_half_precision(tmp_path: Path) -> None:
    keys = {"sparsity": "static", "sparsity__density": 0.5, "sparsity__structure": "2:4"}
    with pytest.raises(ConfigError, match=r"computes in half precision; set precision=bf16"):
        train_here(doubles.tiny(), tmp_path, **keys, sparsity__execution="semi_structured")


def test_fp16_is_refused(tmp_path: Path) -> None:
    keys = {"sparsity": "static", "sparsity__execution": "compact", "precision": "fp16"}
    with pytest.raises(ConfigError, match=r"sparsity.execution: 'compact' and fp16"):
        train_here(doubles.tiny(), tmp_path, **keys)
