"""Two real processes that talk over gloo, compared with one process on both halves of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from graftwerk.axes import Batch, Objective, Output, World
from graftwerk.errors import ConfigError
from graftwerk.sync.allreduce import AllReduce
from running import in_processes

RANKS, IMAGES = 2, 8


class Squares(Objective):
    """The mean of squared outputs; fp64, so that only the order of sums differs."""

    def __init__(self, *, batchnorm: bool = False, unused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        norm = [nn.BatchNorm1d(5)] if batchnorm else []
        self.net = nn.Sequential(nn.Linear(3, 5), *norm, nn.Tanh(), nn.Linear(5, 2)).double()
        self.spare = nn.Linear(2, 2).double() if unused else None

    def forward(self, batch: Batch) -> Output:
        loss = self.net(batch.images_nchw).square().mean()
        return Output(loss, {"loss": loss.detach()})


def batch(rank: int, number: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(100 * number + rank)
    images = torch.randn(IMAGES, 3, generator=generator, dtype=torch.float64)
    return Batch(images, torch.zeros(IMAGES), torch.arange(IMAGES))


def gradients(objective: Objective) -> list[Tensor]:
    return [p.grad.clone() for p in objective.parameters() if p.grad is not None]


def both_ranks(number: int = 0) -> Batch:
    images = torch.cat([batch(rank, number).images_nchw for rank in range(RANKS)])
    return Batch(images, torch.zeros(RANKS * IMAGES), torch.arange(RANKS * IMAGES))


def step_once(world: World) -> list[Tensor]:
    objective = Squares()
    model = AllReduce(world, 25, False, False).wrap(objective)
    model(batch(world.rank)).loss.backward()
    return gradients(objective)


def accumulate(world: World) -> list[list[Tensor]]:
    objective = Squares()
    sync = AllReduce(world, 25, False, False)
    model = sync.wrap(objective)
    after: list[list[Tensor]] = []
    for number, last in enumerate([False, True]):
        with sync.accumulating(last=last):
            model(batch(world.rank, number)).loss.backward()
        after.append(gradients(objective))
    return after


def unused_parameters(world: World) -> list[Tensor]:
    objective = Squares(unused=True)
    model = AllReduce(world, 25, True, False).wrap(objective)
    for number in range(2):
        model(batch(world.rank, number)).loss.backward()
    return gradients(objective)


def evaluate(world: World) -> dict[str, Any]:
    objective = Squares(batchnorm=True)
    sync = AllReduce(world, 25, False, False)
    model = sync.wrap(objective)
    model(batch(world.rank)).loss.backward()
    own = {name: tensor.clone() for name, tensor in objective.net.state_dict().items()}
    with sync.averaged(objective.net) as net:
        seen = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    after = {name: tensor.clone() for name, tensor in objective.net.state_dict().items()}
    mean = sync.mean_(torch.tensor([1.0, 5.0]) * (world.rank + 1))
    return {"own": own, "seen": seen, "after": after, "mean": mean}


TASKS = (step_once, accumulate, unused_parameters, evaluate)


def in_one_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS
    )
    world = World(rank, RANKS, rank, RANKS)
    torch.save({task.__name__: task(world) for task in TASKS}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each task returned, by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    in_processes(in_one_rank, folder, ranks=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def test_gradients_are_the_mean_over_ranks(ranks: list[dict[str, Any]]) -> None:
    alone = Squares()
    alone(both_ranks()).loss.backward()
    for found in [rank["step_once"] for rank in ranks]:
        torch.testing.assert_close(found, gradients(alone), rtol=0, atol=1e-15)


def test_accumulation_communicates_only_in_the_last_micro_batch(
    ranks: list[dict[str, Any]],
) -> None:
    first, second = [rank["accumulate"] for rank in ranks]
    assert not torch.equal(first[0][0], second[0][0])
    alone = Squares()
    for number in range(2):
        alone(both_ranks(number)).loss.backward()
    for found in (first[1], second[1]):
        torch.testing.assert_close(found, gradients(alone), rtol=0, atol=1e-14)


def test_unused_parameters_are_found_if_asked(ranks: list[dict[str, Any]]) -> None:
    for found in [rank["unused_parameters"] for rank in ranks]:
        assert len(found) == 4


def test_every_rank_evaluates_the_network_of_rank_0(ranks: list[dict[str, Any]]) -> None:
    first, second = [rank["evaluate"] for rank in ranks]
    assert not torch.equal(first["own"]["1.running_mean"], second["own"]["1.running_mean"])
    for rank in (first, second):
        torch.testing.assert_close(rank["seen"], first["own"], rtol=0, atol=0)
        torch.testing.assert_close(rank["after"], rank["own"], rtol=0, atol=0)
        torch.testing.assert_close(rank["mean"], torch.tensor([1.5, 7.5]))


def test_one_process_is_left_alone() -> None:
    objective, sync = Squares(), AllReduce(World(), 25, False, False)
    assert sync.wrap(objective) is objective
    with sync.accumulating(last=False), sync.averaged(objective.net) as net:
        assert net is objective.net
    assert sync.mean_(torch.tensor(3.0)) == pytest.approx(3.0)


def test_sync_batchnorm_needs_gpus() -> None:
    with pytest.raises(ConfigError, match=r"sync\.sync_batchnorm"):
        AllReduce(World(size=2), 25, False, True).wrap(Squares(batchnorm=True))
