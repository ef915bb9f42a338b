"""Masks of several ranks: the same everywhere, at no cost between updates."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwerk import axes
from graftwerk.axes import Batch, Step, World
from graftwerk.config import load
from graftwerk.errors import ConfigError
from graftwerk.objectives.supervised import Supervised
from graftwerk.optim.config import Optim
from graftwerk.optim.optimizers import build_optimizer
from graftwerk.sparsity.config import Sparsity
from workers import gossip, numbers, together

RANKS, EVERY = 4, 2


def trained(
    sync: axes.Sync, objective: Supervised, rank: int, seed: int, steps: int, **keys: Any
) -> Any:
    """As the loop trains, on images of the rank's own."""
    optimizer = build_optimizer(objective, Optim(name="sgd"), 0.05)
    batches = [
        Batch(numbers(seed + 100 * rank + i, 8, 12), torch.arange(8) % 4, torch.arange(8))
        for i in range(steps)
    ]
    tree = {"kind": "dst", "every": EVERY, "density": 0.3, "prune": "snip"} | keys
    sparsity: Any = load(Sparsity, tree).build()
    sparsity.attach(objective, optimizer, sync, batches[0], seed=seed, total_steps=100)
    sparsity.first = [layer.mask.clone() for layer in sparsity.layers]
    sync.attach(objective, optimizer)
    for number, batch in enumerate(batches):
        step = Step(number, epoch=0, total=100, batch=batch)
        objective(batch).loss.backward()
        sync.mix()
        sparsity.before_step(step)
        optimizer.step()
        sparsity.after_step(step)
        sync.publish()
        optimizer.zero_grad()
    return sparsity


def network(seed: int) -> Supervised:
    net = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 4)).double()
    for i, parameter in enumerate(net.parameters()):
        parameter.data = 0.3 * numbers(seed + i, *parameter.shape)
    return Supervised(net, loss="ce", smoothing=0.0)


@pytest.fixture
def seed() -> int:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    return seed


def test_four_replicas_that_differ_have_the_same_masks(seed: int) -> None:
    def work(world: World) -> list[tuple[Tensor, Tensor, Tensor]]:
        objective = network(seed)
        sync = gossip(world, objective, topology="ring")
        sparsity = trained(sync, objective, world.rank, seed, steps=5)
        with sync.averaged(objective.net):
            pass
        return [
            (first, layer.mask, layer.weight.detach().clone())
            for first, layer in zip(sparsity.first, sparsity.layers, strict=True)
        ]

    for (before, mask, weight), *others in zip(*together(RANKS, work), strict=True):
        assert not torch.equal(before, mask)
        assert not weight[~mask].any()
        for _, other_mask, other_weight in others:
            assert torch.equal(mask, other_mask)
            assert not torch.equal(weight, other_weight)
            assert not other_weight[~mask].any()


def test_products_without_gradients_to_average_are_for_one_process(seed: int) -> None:
    def work(world: World) -> set[str]:
        objective = network(seed)
        sync = gossip(world, objective, topology="ring")
        with pytest.raises(ConfigError, match="'csr' works in one process"):
            trained(sync, objective, world.rank, seed, steps=1, execution="csr")
        objective = network(seed)
        sync = gossip(world, objective, topology="ring")
        sparsity = trained(sync, objective, world.rank, seed, steps=2, execution="auto")
        with sync.averaged(objective.net):
            pass
        return {execution.form for execution in sparsity.executions}

    assert together(2, work) == [{"dense"}] * 2


class Counting(axes.Sync):
    calls = 0

    def mean_(self, tensor: Tensor) -> Tensor:
        self.calls += 1
        return tensor


def test_ranks_agree_on_nothing_between_updates(seed: int) -> None:
    calls: dict[int, int] = {}
    for steps in range(1, 2 * EVERY + 1):
        sync = Counting()
        trained(sync, network(seed), 0, seed, steps)
        calls[steps] = sync.calls
    assert calls[EVERY - 1] == 0
    assert calls[EVERY] == calls[2 * EVERY - 1] > 0
    assert calls[2 * EVERY] == 2 * calls[EVERY]
