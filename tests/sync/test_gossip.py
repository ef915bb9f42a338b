"""Gossip where workers are late, differ, or are not what was expected."""

from __future__ import annotations

import random
import time

import pytest
import torch
from torch import Tensor, nn

from graftwerk.axes import Objective, World
from graftwerk.errors import ConfigError
from graftwerk.sync.config import Gossip as Config
from graftwerk.sync.gossip import Gossip
from graftwerk.sync.payload import add_quantized_, quantized
from graftwerk.sync.replicas import average_finite_, buckets
from workers import Vectors, gossip, numbers, together


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("payload", ["fp32", "int8"])
def test_a_late_peer_costs_both_ends_the_exchange_and_nobody_the_mean(
    late: int, payload: str
) -> None:
    """Whoever is late, the one that decides or the other: W loses the edge in both rows."""
    seed = random.randrange(2**31)

    def work(world: World) -> tuple[Tensor, float]:
        objective = Vectors(numbers(seed, 7))
        sync = gossip(world, objective, topology="complete", patience=0.1, payload=payload)
        sync.attach(objective, torch.optim.SGD(objective.parameters()))
        sync.mix()
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(world.rank)
        for step in range(4):
            if step == 1 and world.rank == late:
                time.sleep(1.2)
            sync.publish()
            sync.mix()
        with sync.averaged(objective.net):
            pass
        return objective.value(), sync.metrics()["self_loops"]

    found = together(3, work)
    values = torch.stack([value for value, _ in found])
    torch.testing.assert_close(values.mean(0), numbers(seed, 7) + 1, rtol=0, atol=1e-14)
    loops = found[0][1]
    assert loops == found[1][1] == found[2][1]
    assert loops >= 2, f"seed {seed}"
    assert loops % 2 == 0, "each exchange is left out at both ends"


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("payload", ["fp32", "int8"])
def test_weights_that_are_not_finite_stay_where_they_are(bad: int, payload: str) -> None:
    """Before the second mixing; whoever it is, the one that decides or the other."""
    seed = random.randrange(2**31)

    def work(world: World) -> tuple[Tensor, Tensor, str | None]:
        objective = Vectors(numbers(seed, 7))
        sync = gossip(world, objective, topology="complete", patience=100.0, payload=payload)
        sync.attach(objective, torch.optim.SGD(objective.parameters()))
        sync.mix()
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(world.rank)
        own, last = objective.value(), list(objective.parameters())[-1]
        if world.rank == bad:
            last.data[-1] = torch.inf
        sync.publish()
        told = sync.withheld()
        sync.mix()
        during = objective.value()
        if world.rank == bad:
            last.data[-1] = own[-1]
        sync.publish()
        assert sync.withheld() is None
        sync.mix()
        return during, objective.value(), told

    during, after, told = zip(*together(3, work), strict=True)
    others = [rank for rank in range(3) if rank != bad]
    assert [text is not None for text in told] == [rank == bad for rank in range(3)], f"seed {seed}"
    assert during[bad][-1] == torch.inf
    kept = torch.stack([during[rank] for rank in others])
    wanted = numbers(seed, 7) + sum(others) / 2
    torch.testing.assert_close(kept.mean(0), wanted, rtol=0, atol=1e-14)
    mean = numbers(seed, 7) + 1
    torch.testing.assert_close(torch.stack(after).mean(0), mean, rtol=0, atol=1e-14)


@pytest.mark.parametrize("bad", [(), (1,), (0, 1, 2)])
def test_a_global_average_is_that_of_the_finite(bad: tuple[int, ...]) -> None:
    seed = random.randrange(2**31)
    values = numbers(seed, 3, 5)
    values[list(bad), 2] = torch.nan

    def work(world: World) -> Tensor:
        sync, own = gossip(world, Vectors(numbers(seed, 7))), values[world.rank].clone()
        assert average_finite_([own], sync.mean_) is (world.rank not in bad)
        return own

    good = [rank for rank in range(3) if rank not in bad] or [0, 1, 2]
    for found in together(3, work):
        wanted = values[good].mean(0)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14, equal_nan=True)


def test_different_models_are_refused_on_all_ranks() -> None:
    def work(world: World) -> str:
        objective = Vectors(numbers(0, 7), split=4 if world.rank == 2 else 3)
        sync = gossip(world, objective)
        with pytest.raises(ConfigError) as caught:
            sync.attach(objective, torch.optim.SGD(objective.parameters()))
        return str(caught.value)

    for message in together(3, work):
        assert "rank 2 has another model than rank 0" in message
        assert "net.a (4,)" in message
        assert "net.a (3,)" in message


class Normed(Objective):
    """Two layers and a frozen one; only one layer takes part in a step."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(rank)
        self.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.net[2].requires_grad_(False)
        self.used = self.net[:2]


def test_all_start_as_rank_0_and_statistics_are_averaged_for_evaluation() -> None:
    """Frozen and unused parameters, and gradient accumulation, need no care."""

    def work(world: World) -> dict[str, dict[str, Tensor]]:
        def now() -> dict[str, Tensor]:
            return {name: tensor.clone() for name, tensor in objective.net.state_dict().items()}

        objective = Normed(world.rank)
        sync = gossip(world, objective, topology="complete")
        optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
        sync.attach(objective, optimizer)
        start = now()
        for last in (False, True):
            with sync.accumulating(last=last):
                objective.used(numbers(10 + world.rank, 8, 3)).square().mean().backward()
        sync.mix()
        optimizer.step()
        sync.publish()
        own = now()
        with sync.averaged(objective.net) as net:
            seen = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        return {"start": start, "own": own, "seen": seen, "after": now()}

    first, second = together(2, work)
    for name, tensor in first["start"].items():
        assert torch.equal(tensor, second["start"][name])
        assert torch.equal(first["own"][name], first["after"][name])
        if tensor.is_floating_point():
            mean = (first["own"][name] + second["own"][name]) / 2
            torch.testing.assert_close(first["seen"][name], mean, rtol=0, atol=1e-15)
    assert not torch.equal(first["own"]["1.running_mean"], second["own"]["1.running_mean"])
    assert torch.equal(first["own"]["2.weight"], second["own"]["2.weight"])


def test_bytes_are_counted() -> None:
    """Of 2100 parameters in float64: 8 bytes each, 2 as bf16; int8 and two scales of 4 bytes."""

    def sent(world: World, payload: str) -> float:
        objective = Vectors(numbers(0, 2100), split=1000)
        sync = gossip(world, objective, topology="complete", payload=payload)
        sync.attach(objective, torch.optim.SGD(objective.parameters()))
        for _ in range(3):
            sync.mix()
            sync.publish()
        with sync.averaged(objective.net):
            return sync.metrics()["bytes_sent"]

    per_message = {"fp32": [16800] * 4, "bf16": [4200] * 4, "int8": [16800] + [2100 + 12] * 3}
    for payload, expected in per_message.items():
        found = together(2, lambda world, p=payload: sent(world, p))
        assert found[0] == 2 * sum(expected)


def test_int8_is_off_by_half_a_step_at_most() -> None:
    seed = random.randrange(2**31)
    values = numbers(seed, 3000) * torch.logspace(-3, 3, 3000, dtype=torch.float64)
    body = quantized(values)
    assert body.numel() == 3000 + 4 * 3
    assert torch.equal(body, quantized(values + 1024, torch.full_like(values, 1024)))
    error = (add_quantized_(torch.zeros_like(values), body) - values).abs()
    for block in range(3):
        part = slice(1024 * block, 1024 * (block + 1))
        step = values[part].abs().max() / 127
        assert error[part].max() <= 0.5001 * step, f"seed {seed}"
    zeros = torch.zeros(5, dtype=torch.float32)
    assert torch.equal(add_quantized_(zeros.clone(), quantized(zeros)), zeros)


def test_buckets_keep_the_order_and_hold_one_type() -> None:
    sizes = [(3, torch.float32), (5, torch.float32), (1, torch.float64), (9, torch.float32)]
    parameters = [nn.Parameter(torch.zeros(n, dtype=dtype)) for n, dtype in sizes]
    found = [[p.numel() for p in bucket] for bucket in buckets(parameters, 24)]
    assert found == [[3], [5], [1], [9]]
    found = [[p.numel() for p in bucket] for bucket in buckets(parameters, 1000)]
    assert found == [[3, 5], [1], [9]]


def test_unknown_topology_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sync\.topology"):
        Gossip(World(), Config(topology="star"))


def test_the_group_of_a_single_process_is_none() -> None:
    objective = Vectors(numbers(0, 7))
    sync = gossip(World(), objective)
    sync.attach(objective, torch.optim.SGD(objective.parameters()))
    sync.mix()
    sync.publish()
    with sync.averaged(objective.net) as net:
        assert net is objective.net
    assert sync.mean_(torch.tensor(2.0)) == 2.0
