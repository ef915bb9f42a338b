"""Multiplications and additions of a network, counted for the masks that it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from graftwerk.axes import Batch, Objective
from graftwerk.sparsity.masks import MaskedWeight


@torch.no_grad()
def positions(objective: Objective, batch: Batch) -> dict[str, int]:
    """How often an image meets the weights of each convolution and linear layer of the net.

    A convolution's weights act at each pixel of its output, a linear layer's at each token.
    """
    counts: dict[str, int] = {}
    net = objective.net

    def note(name: str, channels: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            del module, inputs
            counts[name] = counts.get(name, 0) + output.numel() // channels

        return hook

    handles = [
        module.register_forward_hook(note(name, int(module.weight.shape[0])))
        for name, module in net.named_modules()
        if isinstance(module, _ConvNd | nn.Linear)
    ]
    modes = [(module, module.training) for module in objective.modules()]
    objective.eval()
    one = batch._replace(
        images_nchw=batch.images_nchw[:1], targets=batch.targets[:1], indices=batch.indices[:1]
    )
    try:
        with torch.compiler.set_stance("force_eager"):
            objective.evaluate(one)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return counts


def per_image(
    net: nn.Module, layers: Collection[MaskedWeight], positions: Mapping[str, int]
) -> tuple[float, float]:
    """(Operations of the masked, of the dense network) for the forward pass of an image.

    Two for each weight at each position, in convolutions and linear layers; others are few.
    """
    active = {layer.name: layer.active for layer in layers}
    sizes = {name: net.get_submodule(name).weight.numel() for name in positions}  # pyright: ignore
    sizes |= {layer.name: layer.size for layer in layers if layer.name in positions}
    masked = sum(2 * count * active.get(name, sizes[name]) for name, count in positions.items())
    return float(masked), float(sum(2 * count * sizes[name] for name, count in positions.items()))


def relative(
    net: nn.Module, layers: Collection[MaskedWeight], positions: Mapping[str, int]
) -> float:
    masked, dense = per_image(net, layers, positions)
    return masked / dense if dense else 1.0


def training(masked: float, dense: float, dense_gradients_every: int | None) -> float:
    """Operations of forward and backward of an image: 3 f_S; where growth asks for the gradients
    of all weights every Δ steps, (3 f_S Δ + 2 f_S + f_D) / (Δ + 1) (Evci et al. 2020, app. H)."""
    if dense_gradients_every is None:
        return 3 * masked
    period = dense_gradients_every
    return (3 * masked * period + 2 * masked + dense) / (period + 1)
