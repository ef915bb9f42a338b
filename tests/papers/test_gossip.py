"""Decentralised training against its mathematics, in float64: Wang et al., ICLR 2025.

The reference is numpy with whole matrices: X [n, d] holds the replicas of n workers in its rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from graftwerk.axes import World
from graftwerk.sync.custom import find_topology
from graftwerk.sync.topology import TOPOLOGIES, schedule
from workers import Vectors, gossip, group_of, numbers, together

DIMENSION, LR = 7, 0.05
Optimizer = Callable[[Any], torch.optim.Optimizer]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=LR, momentum=0.9, weight_decay=0.01)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=LR)


@pytest.fixture
def seed() -> int:
    chosen = random.randrange(2**31)
    print(f"seed {chosen}")
    return chosen


def targets(seed: int, size: int, steps: int) -> Tensor:
    """Of each worker in each step: [n, steps, d]."""
    return numbers(seed, size, steps, DIMENSION)


def train(
    world: World, seed: int, size: int, steps: int, make: Optimizer, **keys: Any
) -> tuple[Tensor, Tensor]:
    """This worker's replica before each step and at the end [steps + 1, d], and the updates u."""
    objective = Vectors(numbers(seed + 1, DIMENSION) / 4)
    objective.net.requires_grad_(True)
    sync = gossip(world, objective, **keys)
    optimizer = make(objective.parameters())
    sync.attach(objective, optimizer)
    path, updates = [objective.value()], list[Tensor]()
    for target in targets(seed, size, steps)[world.rank]:
        objective.loss(target).backward()
        sync.mix()
        before = objective.value()
        optimizer.step()
        updates.append(before - objective.value())
        sync.publish()
        optimizer.zero_grad()
        path.append(objective.value())
    return torch.stack(path), torch.stack(updates)


def matrices(name: str, size: int, steps: int, nodes: int = 1) -> list[np.ndarray]:
    where = {rank: rank * nodes // size for rank in range(size)}
    plan = schedule(find_topology(name), range(size), where)
    return [np.array(plan.matrix(step)) for step in range(steps)]


def reference_updates(x: np.ndarray, mixed: np.ndarray, target: np.ndarray) -> np.ndarray:
    """u of SGD with momentum and (coupled) weight decay; gradient at x, decay at the mixed x."""
    momentum = np.zeros_like(x[0])
    updates: list[np.ndarray] = []
    for step in range(len(target)):
        gradient = x[step] - target[step] + 0.01 * mixed[step]
        momentum = 0.9 * momentum + gradient
        updates.append(LR * momentum)
    return np.stack(updates)


@pytest.mark.parametrize("size", range(2, 9))
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_combine_then_adapt(name: str, size: int, seed: int) -> None:
    """x_{t+1} = W_t x_t − lr · u(g(x_t)), every entry within 1e-15."""
    steps, nodes = 5, 2 if size % 2 == 0 else 1
    runs = together(
        size, lambda world: train(world, seed, size, steps, sgd, topology=name), nodes=nodes
    )
    x = np.stack([path.numpy() for path, _ in runs], axis=1)  # [steps + 1, n, d]
    weights = matrices(name, size, steps, nodes)
    target = targets(seed, size, steps).numpy().transpose(1, 0, 2)
    mixed = np.stack([w @ x[step] for step, w in enumerate(weights)])
    u = reference_updates(x[:-1], mixed, target)
    np.testing.assert_allclose(x[1:], mixed - u, rtol=0, atol=1e-15)
    assert np.abs(x[-1] - x[-1].mean(0)).max() > 1e-3


@pytest.mark.parametrize("make", [sgd, adam])
def test_mixing_keeps_the_mean(make: Optimizer, seed: int) -> None:
    runs = together(5, lambda world: train(world, seed, 5, 6, make, topology="two_neighbour_ring"))
    x, u = (np.stack([run[i].numpy() for run in runs], axis=1) for i in (0, 1))
    np.testing.assert_allclose(x[1:].mean(1), x[:-1].mean(1) - u.mean(1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", ["complete", "one_peer_exp", "base_k"])
def test_adapt_then_combine(name: str, seed: int) -> None:
    """x_{t+1} = W_t (x_t − lr · u(g(x_t)))."""
    size, steps = 4, 5
    keys = {"topology": name, "order": "adapt_then_combine"}
    runs = together(size, lambda world: train(world, seed, size, steps, adam, **keys))
    x, u = (np.stack([run[i].numpy() for run in runs], axis=1) for i in (0, 1))
    expected = [w @ (x[t] - u[t]) for t, w in enumerate(matrices(name, size, steps))]
    np.testing.assert_allclose(x[1:], np.stack(expected), rtol=0, atol=1e-15)


def test_adapt_then_combine_with_all_is_data_parallel_sgd(seed: int) -> None:
    """With momentum and weight decay, for both are linear: what DDP does, but for rounding."""
    size, steps = 4, 8
    keys = {"topology": "complete", "order": "adapt_then_combine"}
    runs = together(size, lambda world: train(world, seed, size, steps, sgd, **keys))
    alone = Vectors(numbers(seed + 1, DIMENSION) / 4)
    optimizer = sgd(alone.parameters())
    for step in range(steps):
        for rank in range(size):
            (alone.loss(targets(seed, size, steps)[rank, step]) / size).backward()
        optimizer.step()
        optimizer.zero_grad()
        for path, _ in runs:
            torch.testing.assert_close(path[step + 1], alone.value(), rtol=0, atol=1e-15)


def test_with_gradients_averaged_inside_a_node_is_a_worker(seed: int) -> None:
    """Four workers on two nodes are two workers, each with the images of both."""
    keys = {"topology": "one_peer_exp", "by_node": True, "node_gradients": True}
    runs = together(4, lambda world: train(world, seed, 4, 6, sgd, **keys), nodes=2)
    x, u = (np.stack([run[i].numpy() for run in runs], axis=1) for i in (0, 1))
    target = targets(seed, 4, 6).numpy().transpose(1, 0, 2).reshape(6, 2, 2, -1).mean(2)
    np.testing.assert_allclose(x[:, 0], x[:, 1], rtol=0, atol=1e-15)
    np.testing.assert_allclose(x[:, 2], x[:, 3], rtol=0, atol=1e-15)
    nodes = x[:, ::2]
    mixed = np.stack([w @ nodes[t] for t, w in enumerate(matrices("one_peer_exp", 2, 6))])
    expected = reference_updates(nodes[:-1], mixed, target)
    np.testing.assert_allclose(u[:, ::2], expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(nodes[1:], mixed - expected, rtol=0, atol=1e-15)
    assert np.abs(nodes[-1][0] - nodes[-1][1]).max() > 1e-3


def test_equal_replicas_stay_where_they_are(seed: int) -> None:
    """At lr = 0 nothing moves, to the last bit, whatever the weights."""

    def still(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.0)

    for name in ("base_k", "two_neighbour_ring"):
        runs = together(3, lambda world, n=name: train(world, seed, 3, 4, still, topology=n))
        for path, _ in runs:
            assert all(torch.equal(x, path[0]) for x in path)


def test_global_averaging_in_between(seed: int) -> None:
    keys = {"topology": "ring", "global_every": 3}
    runs = together(4, lambda world: train(world, seed, 4, 6, sgd, **keys))
    x, u = (np.stack([run[i].numpy() for run in runs], axis=1) for i in (0, 1))
    ring = matrices("ring", 4, 6)
    for step in range(6):
        w = np.full((4, 4), 1 / 4) if step % 3 == 2 else ring[step]
        np.testing.assert_allclose(x[step + 1], w @ x[step] - u[step], rtol=0, atol=1e-15)


@pytest.mark.parametrize("payload", ["bf16", "int8"])
def test_rounded_payloads_keep_the_mean(payload: str, seed: int) -> None:
    """What one end gains the other one loses, however coarse the message is."""
    keys = {"topology": "one_peer_exp", "payload": payload}
    runs = together(4, lambda world: train(world, seed, 4, 12, sgd, **keys))
    x, u = (np.stack([run[i].numpy() for run in runs], axis=1) for i in (0, 1))
    np.testing.assert_allclose(x[1:].mean(1), x[:-1].mean(1) - u.mean(1), rtol=0, atol=1e-14)
    exact = together(4, lambda world: train(world, seed, 4, 12, sgd, topology="one_peer_exp"))
    end = np.stack([path[-1].numpy() for path, _ in exact])
    difference = np.abs(end - x[-1]).max()
    assert 0 < difference < 0.02


def test_int8_differences_lose_nothing_in_the_long_run(seed: int) -> None:
    """At lr = 0 replicas that start apart agree in the end, though each message is rounded."""

    def apart(world: World, payload: str) -> Tensor:
        objective = Vectors(numbers(seed, DIMENSION))
        sync = gossip(world, objective, topology="ring", payload=payload)
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.0)
        sync.attach(objective, optimizer)
        sync.mix()
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(world.rank)
        for _ in range(60):
            sync.publish()
            sync.mix()
        return objective.value()

    replicas = torch.stack(together(4, lambda world: apart(world, "int8")))
    mean = numbers(seed, DIMENSION) + 1.5
    torch.testing.assert_close(replicas, mean.expand(4, -1), rtol=0, atol=1e-9)


def test_evaluation_sees_the_average_and_training_does_not(seed: int) -> None:
    def look(world: World) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
        objective = Vectors(numbers(seed, DIMENSION))
        sync = gossip(world, objective)
        sync.attach(objective, torch.optim.SGD(objective.parameters()))
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(world.rank)
        before = objective.value()
        with sync.averaged(objective.net):
            seen = objective.value()
        return before, seen, objective.value(), sync.metrics()

    runs = together(3, look)
    mean = torch.stack([run[0] for run in runs]).mean(0)
    for before, seen, after, facts in runs:
        torch.testing.assert_close(seen, mean, rtol=0, atol=1e-15)
        assert torch.equal(seen, runs[0][1])
        assert torch.equal(before, after)
        assert facts["consensus_distance"] == pytest.approx((DIMENSION * 2 / 3) ** 0.5)


def test_scores_are_agreed_on(seed: int) -> None:
    def ask(world: World) -> Tensor:
        sync = gossip(world, Vectors(numbers(seed, DIMENSION)))
        return sync.mean_(numbers(seed + world.rank, 3, 2))

    found = together(3, ask)
    mean = torch.stack([numbers(seed + rank, 3, 2) for rank in range(3)]).mean(0)
    for tensor in found:
        torch.testing.assert_close(tensor, mean, rtol=0, atol=1e-15)
        assert torch.equal(tensor, found[0])


@pytest.mark.parametrize("payload", ["fp32", "bf16", "int8"])
def test_resumed_with_the_same_bits(payload: str, seed: int) -> None:
    """Phase, memory of what was said, and the exchange under way come back with the checkpoint."""
    keys = {"topology": "base_k", "payload": payload}

    def run(world: World, start: dict[int, Any] | None, steps: range) -> tuple[Tensor, Any]:
        objective = Vectors(numbers(seed + 1, DIMENSION))
        sync = gossip(world, objective, **keys)
        optimizer = adam(objective.parameters())
        if start is not None:
            state = start[world.rank]
            objective.load_state_dict(state["x"])
            optimizer.load_state_dict(state["optimizer"])
            sync.load_state_dict(state["sync"])
        sync.attach(objective, optimizer)
        for step in steps:
            objective.loss(targets(seed, 3, 9)[world.rank, step]).backward()
            sync.mix()
            optimizer.step()
            sync.publish()
            optimizer.zero_grad()
        state = {
            "x": {name: x.clone() for name, x in objective.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "sync": sync.state_dict(),
        }
        return objective.value(), state

    whole = together(3, lambda world: run(world, None, range(9)))
    half = together(3, lambda world: run(world, None, range(4)))
    states = {rank: state for rank, (_, state) in enumerate(half)}
    rest = together(3, lambda world: run(world, states, range(4, 9)))
    for (one, _), (other, _) in zip(whole, rest, strict=True):
        assert torch.equal(one, other)


def test_one_worker_is_plain_training(seed: int) -> None:
    path, _ = train(World(), seed, 1, 4, sgd)
    alone = Vectors(numbers(seed + 1, DIMENSION) / 4)
    optimizer = sgd(alone.parameters())
    for step in range(4):
        alone.loss(targets(seed, 1, 4)[0, step]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(path[-1], alone.value())


def test_groups_end_when_their_work_does() -> None:
    assert together(2, lambda world: group_of(world).gather(world.rank)) == [[0, 1], [0, 1]]
