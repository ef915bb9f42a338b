"""Adapt, then combine with all: the real DistributedDataParallel in two real processes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import (
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)

from graftwerk import axes
from graftwerk.axes import Batch, Objective, Output, World
from graftwerk.elastic import meeting
from graftwerk.sync.allreduce import AllReduce
from running import in_processes
from workers import gossip, group_of, numbers

RANKS, STEPS, IMAGES = 2, 12, 8


class Squares(Objective):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        with torch.no_grad():
            for number, parameter in enumerate(self.net.parameters()):
                parameter.copy_(numbers(seed + number, *parameter.shape))

    def forward(self, batch: Batch) -> Output:
        loss = self.net(batch.images_nchw).square().mean()
        return Output(loss, {})


def train(sync: axes.Sync, seed: int, rank: int) -> Tensor:
    """The parameters after each step, [steps, d]."""
    objective = Squares(seed)
    model = sync.wrap(objective)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    sync.attach(model, optimizer)
    path: list[Tensor] = []
    for step in range(STEPS):
        images = numbers(seed + 100 + RANKS * step + rank, IMAGES, 3)
        output = model(Batch(images, torch.zeros(IMAGES), torch.arange(IMAGES)))
        cast(Output, output).loss.backward()
        sync.mix()
        optimizer.step()
        sync.publish()
        optimizer.zero_grad()
        path.append(torch.cat([p.detach().reshape(-1) for p in objective.parameters()]))
    return torch.stack(path)


def both(rank: int, port: int, seed: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False)
    world = World(rank, RANKS, rank, RANKS)
    dist.init_process_group("gloo", store=PrefixStore("ddp", store), rank=rank, world_size=2)
    expected = train(AllReduce(world, 25, False, False), seed, rank)
    dist.destroy_process_group()
    meeting_place = PrefixStore("gossip", store)
    world.control = meeting.meet(
        world, meeting_place, timeout=60.0, host="127.0.0.1", node=0, start=0
    )
    sync = gossip(world, Squares(seed), topology="complete", order="adapt_then_combine")
    found = train(sync, seed, rank)
    group_of(world).close(finished=True)
    torch.save((expected, found), folder / f"{rank}.pt")


def test_is_ddp_for_sgd_with_momentum_and_weight_decay(tmp_path: Path) -> None:
    seed = random.randrange(2**31)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    in_processes(both, store.port, seed, tmp_path, ranks=RANKS)
    for rank in range(RANKS):
        expected, found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12, msg=f"seed {seed}")
        assert (found[-1] - found[0]).abs().max() > 1e-3
