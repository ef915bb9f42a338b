"""What an update of the masks changes beside the masks: optimizer state, and norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graftwerk.errors import ConfigError
from graftwerk.sparsity.config import Dst
from graftwerk.sparsity.masks import MaskedWeight, dimensions
from graftwerk.sparsity.select import places


def reset(optimizer: torch.optim.Optimizer, weight: nn.Parameter, where: Tensor) -> None:
    """Zero the state that belongs to single weights (momentum, second moments) at `where`.

    Factored or scalar state, as Adafactor's, is shared between weights and stays.
    """
    for value in of(optimizer, weight).values():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            zero(value, where)


def zero(tensor: Tensor, where: Tensor) -> None:
    """Few of many: a fill by places takes a third of the time of one by a mask."""
    if tensor.is_cpu and tensor.is_contiguous():
        tensor.view(-1).index_fill_(0, places(where.flatten()), 0)
    else:
        tensor.masked_fill_(where, 0)


def of(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> dict[str, Any]:
    """The optimizer's state of a weight; Lookahead keeps it in the optimizer that it wraps."""
    inner: torch.optim.Optimizer = getattr(optimizer, "_base_optimizer", optimizer)
    return inner.state.get(weight, {})


def momentum(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> Tensor:
    """SGD's buffer, or Adam's m / (√v + 1e-8). [out, in, …]"""
    state = of(optimizer, weight)
    for name in ("momentum_buffer", "momentum", "exp_avg"):
        if isinstance(first := state.get(name), Tensor):
            second = state.get("exp_avg_sq")
            if isinstance(second, Tensor) and second.shape == first.shape:
                return first / (second.sqrt() + 1e-8)
            return first
    return torch.zeros_like(weight)


def check_momentum(config: Dst, optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> None:
    """After the first step: whether the optimizer keeps what growth or redistribution wants."""
    names = {"momentum_buffer", "momentum", "exp_avg"}
    keys = [key for key in ("grow", "redistribute") if getattr(config, key) == "momentum"]
    if keys and not names & of(optimizer, weight).keys():
        kind = type(getattr(optimizer, "_base_optimizer", optimizer)).__name__
        raise ConfigError(
            [f"sparsity.{key}: 'momentum' is not kept by {kind}; use 'gradient'" for key in keys]
        )


def adjust(layer: MaskedWeight, survivors: Tensor, over: str) -> None:
    """Multiply surviving weights by ‖w a_old‖ / ‖w a_new‖ of their layer, output or input.

    Where nothing survives there is nothing to multiply.
    """
    weight = layer.weight
    dims = dimensions(over, weight.ndim)
    before = (weight * layer.mask).norm(dim=dims, keepdim=True)
    after = (weight * survivors).norm(dim=dims, keepdim=True)
    weight.mul_(torch.where(after > 0, before / after, torch.ones_like(after)))
