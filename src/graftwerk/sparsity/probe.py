"""Extra passes through an objective for scores, which leave no trace in it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from graftwerk.axes import Batch, Objective


def gradients(objective: Objective, batch: Batch, weights: Sequence[nn.Parameter]) -> list[Tensor]:
    """g = ∇L of a batch for each weight; zeros where L does not depend on it."""
    with _without_trace(objective):
        loss = objective(batch).loss
        return list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))


def hessian_gradients(
    objective: Objective, batch: Batch, weights: Sequence[nn.Parameter], temperature: float
) -> list[Tensor]:
    """H g for each weight, with the network's outputs divided by `temperature`.

    From ∇(g · stop(g)), as GraSP (Wang et al. 2020, algorithm 1) has it.
    """
    twice = sdpa_kernel(SDPBackend.MATH)  # the fused attentions have one derivative only
    with _without_trace(objective), _heated(objective.net, temperature), twice:
        loss = objective(batch).loss
        grads = torch.autograd.grad(
            loss, weights, create_graph=True, allow_unused=True, materialize_grads=True
        )
        product = torch.stack([(grad * grad.detach()).sum() for grad in grads]).sum()
        return list(
            torch.autograd.grad(product, weights, allow_unused=True, materialize_grads=True)
        )


@contextmanager
def _without_trace(objective: Objective) -> Generator[None]:
    """Buffers (BatchNorm's statistics) and random generators are afterwards as before.

    In full precision, whatever the passes of training have.
    """
    buffers = [(buffer, buffer.clone()) for buffer in objective.buffers()]
    devices = {weight.device for weight in objective.parameters() if weight.is_cuda}
    kind = next(objective.parameters()).device.type
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.enable_grad(),
            torch.autocast(kind, enabled=False),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextmanager
def _heated(net: nn.Module, temperature: float) -> Generator[None]:
    def cool(module: nn.Module, inputs: Any, output: Any) -> Any:
        del module, inputs
        return output / temperature

    handle = net.register_forward_hook(cool)
    try:
        yield
    finally:
        handle.remove()
