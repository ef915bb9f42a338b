"""The mean gradient of the workers of one machine, which then stay equal: a worker of many devices.

    g_i ← g_i + Σ_j (g_j − g_i) / L    over the L − 1 others of the machine

It is exchanged in pairs as parameters are, but waited for: what all-reduce computes, and a worker
that dies or is late costs its share alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from graftwerk.sync.exchange import Exchanges
from graftwerk.sync.payload import from_host, to_host
from graftwerk.sync.replicas import add_, copy_done, flattened


class NodeGradients:
    def __init__(self, exchanges: Exchanges, buckets: Sequence[Sequence[nn.Parameter]]) -> None:
        self.exchanges = exchanges
        self._buckets = buckets

    @torch.no_grad()
    def average_(self, step: int, others: Collection[int]) -> None:
        """In place, with the workers `others` (uids), who make the same call.

        A parameter without gradient counts as 0, and stays without where all others' are 0 too.
        """
        flats = [self._flat(bucket) for bucket in self._buckets]
        for uid in others:
            self.exchanges.begin(step, uid)
            for number, flat in enumerate(flats):
                self.exchanges.publish(step, uid, number, to_host(flat), copy_done(flat))
        moves = [torch.zeros_like(flat) for flat in flats]
        for uid in others:
            bodies = list(self.exchanges.arriving(step, uid))
            if self.exchanges.happens(step, uid):
                for move, body, flat in zip(moves, bodies, flats, strict=True):
                    move.add_(from_host(body, flat) - flat, alpha=1 / (len(others) + 1))
        self.exchanges.close(step)
        for bucket, move in zip(self._buckets, moves, strict=True):
            self._move(bucket, move)

    def _flat(self, bucket: Sequence[nn.Parameter]) -> Tensor:
        gradients = [torch.zeros_like(p) if p.grad is None else as_laid(p) for p in bucket]
        return flattened(gradients, bucket[0].new_empty(sum(p.numel() for p in bucket)))

    def _move(self, bucket: Sequence[nn.Parameter], move: Tensor) -> None:
        for parameter, part in zip(bucket, move.split([p.numel() for p in bucket]), strict=True):
            if parameter.grad is None:
                if not part.any():
                    continue
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = as_laid(parameter)
            add_([parameter.grad], part, 1.0)


def as_laid(parameter: nn.Parameter) -> Tensor:
    """Its gradient, in memory as the parameter itself: the same on all workers."""
    assert parameter.grad is not None
    if parameter.grad.stride() == parameter.stride():
        return parameter.grad
    return torch.empty_like(parameter).copy_(parameter.grad)
