"""BatchNorm's statistics taken anew under other parameters than they were collected under.

The average of replicas has activations of its own: the mean of their running statistics is close to
its statistics, a pass over training images is exact.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.optim.swa_utils import update_bn

from graftwerk.evaluate import evaluating
from graftwerk.parts import Parts
from graftwerk.sync.replicas import average_


@contextmanager
def recalibrated(parts: Parts, net: nn.Module) -> Generator[None]:
    """`net` with statistics of its own where the run asks for them; on exit it is what it was.

    A collective call. Training's images, random numbers and order are not touched.
    """
    own = [buffer.clone() for buffer in net.buffers()]
    recalibrate_(parts, net)
    try:
        yield
    finally:
        for buffer, before in zip(net.buffers(), own, strict=True):
            buffer.copy_(before)


def recalibrate_(parts: Parts, net: nn.Module) -> None:
    """In place, from the first `sync.recalibrate` micro-batches of each rank; 0: nothing."""
    count = getattr(parts.run.sync, "recalibrate", 0)
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    if not count or not norms:
        return
    batches = parts.first_batches(count)
    devices = [parts.world.device] if parts.world.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        evaluating(parts.objective, net),
        parts.precision.autocast(),
    ):
        update_bn(([parts.to_device(batch)] for batch in batches), parts.objective)
    statistics = [t for n in norms for t in (n.running_mean, n.running_var) if t is not None]
    average_(statistics, parts.sync.mean_)
