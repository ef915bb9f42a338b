"""One worker of benchmarks/sync.py: a line of JSON in is a contender, a line out its step times.

The network is any of timm's, trained on random images; computing, gradients and bytes are real. The
last worker pauses after each backward pass for as long as it is asked to.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn import functional

from graftwerk import axes, config
from graftwerk.axes import Batch, Objective, Output
from graftwerk.distributed import gather, join
from graftwerk.sync.config import Sync


class Task(Objective):
    def __init__(self, model: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = timm.create_model(model)

    def forward(self, batch: Batch) -> Output:
        return Output(functional.cross_entropy(self.net(batch.images_nchw), batch.targets), {})


class PostLocalSgd(axes.Sync):
    """All parameters averaged every `period` steps, by torch's own averager."""

    replicated = False

    def __init__(self, period: int) -> None:
        self._averager = PeriodicModelAverager(period, warmup_steps=0)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        del optimizer
        self._parameters = list(model.parameters())

    def publish(self) -> None:
        self._averager.average_parameters(iter(self._parameters))


def build(sync: dict[str, Any]) -> Sync | None:
    """The config of graftwerk's own choices; None for what this file adds."""
    return None if sync["kind"] in ("none", "post_local_sgd") else config.load(Sync, sync)


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """When each step ended, and until then the bytes sent and the processor's seconds."""
    chosen = build(asked["sync"])
    elastic = chosen.elastic if chosen is not None else None
    with join("cpu", timeout=elastic.timeout if elastic is not None else None) as world:
        sync = chosen.build(world) if chosen is not None else axes.Sync()
        if asked["sync"]["kind"] == "post_local_sgd":
            sync = PostLocalSgd(asked["sync"]["period"])
        pause = asked["pause"] if world.rank == world.size - 1 else 0.0
        task = Task(asked["model"])
        model = sync.wrap(task)
        optimizer = torch.optim.SGD(task.parameters(), lr=1e-3)
        sync.attach(model, optimizer)
        count = asked["batch"]
        images = torch.randn(count, 3, asked["size"], asked["size"])
        batch = Batch(images, torch.arange(count), torch.arange(count))
        gather(world, None)
        ends, sent, busy = list[float](), list[int](), list[float]()
        for _ in range(asked["steps"]):
            with sync.accumulating(last=True):
                model(batch).loss.backward()
            time.sleep(pause)
            sync.mix()
            optimizer.step()
            sync.publish()
            optimizer.zero_grad()
            assert world.control is not None
            world.control.boundary([0])
            ends.append(time.perf_counter())
            sent.append(bytes_sent())
            busy.append(time.process_time())
        gather(world, None)
    return {"ends": ends, "sent": sent, "busy": busy}


def bytes_sent() -> int:
    """All that left this namespace's eth0 so far, headers included."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next((int(line.split()[9]) for line in lines if "eth0:" in line), 0)


def main() -> None:
    torch.set_num_threads(1)
    first_port = int(os.environ["MASTER_PORT"])
    for number, line in enumerate(sys.stdin):
        os.environ["MASTER_PORT"] = str(first_port + number)
        print(json.dumps(measure(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
