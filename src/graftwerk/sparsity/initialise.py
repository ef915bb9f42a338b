"""The first masks: how many weights a layer keeps, and which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from graftwerk.axes import Batch, Objective, Sync
from graftwerk.errors import ConfigError
from graftwerk.sparsity import probe
from graftwerk.sparsity.allocation import ALLOCATIONS
from graftwerk.sparsity.config import Static
from graftwerk.sparsity.masks import MaskedWeight, check_numbers
from graftwerk.sparsity.select import lowest_among, lowest_per_group


def generator(*key: int) -> torch.Generator:
    """A generator of the CPU whose numbers depend on the key alone, on every rank and device."""
    seed = 0
    for word in key:
        seed = (seed * 1_000_003 + word + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(seed)


def random_scores(like: Tensor, *key: int) -> Tensor:
    """Uniform numbers of the shape and on the device of `like`."""
    numbers = torch.rand(like.shape, generator=generator(*key), dtype=torch.float32)
    return numbers.to(like.device)


@torch.no_grad()
def initialise(
    layers: Sequence[MaskedWeight],
    config: Static,
    density: float,
    objective: Objective,
    sync: Sync,
    batch: Batch,
    seed: int,
) -> list[Tensor]:
    """The mask [out, in, …] of each layer, the same on every rank.

    Exactly round(d_l n_l) weights of a layer are active, or exactly round(d N) of all layers where
    weights are scored. Raises ConfigError where a layer would keep none.
    """
    if config.init in ALLOCATIONS:
        shapes = [layer.shape for layer in layers]
        densities = ALLOCATIONS[config.init](shapes, density)
        scores = [random_scores(layer.weight, seed, i) for i, layer in enumerate(layers)]
        return _place(layers, config, densities, scores)
    scores = [-sync.mean_(score) for score in _importance(layers, config, objective, batch)]
    check_numbers(f"sparsity.init: {config.init!r}", layers, scores)
    units = [layer.unit_scores(score) for layer, score in zip(layers, scores, strict=True)]
    everything = torch.cat([unit.flatten() for unit in units])
    count = round(density * everything.numel())
    kept = lowest_among(everything, torch.ones_like(everything, dtype=torch.bool), count)
    parts = kept.split([unit.numel() for unit in units])
    densities = [part.double().mean().item() for part in parts]
    if config.positions == "random":
        scores = [random_scores(layer.weight, seed, i) for i, layer in enumerate(layers)]
    return _place(layers, config, densities, scores)


def _importance(
    layers: Sequence[MaskedWeight], config: Static, objective: Objective, batch: Batch
) -> list[Tensor]:
    weights = [layer.weight for layer in layers]
    if config.init == "magnitude":
        return [weight.detach().abs() for weight in weights]
    if config.init == "snip":
        grads = probe.gradients(objective, batch, weights)
        return [(w.detach() * g).abs() for w, g in zip(weights, grads, strict=True)]
    products = probe.hessian_gradients(objective, batch, weights, config.temperature)
    return [w.detach() * hg for w, hg in zip(weights, products, strict=True)]


def _place(
    layers: Sequence[MaskedWeight],
    config: Static,
    densities: Sequence[float],
    scores: Sequence[Tensor],
) -> list[Tensor]:
    """Masks with these densities, at the lowest scores that the structure allows."""
    masks: list[Tensor] = []
    starved: list[str] = []
    for layer, density, score in zip(layers, densities, scores, strict=True):
        units = layer.unit_scores(score)
        everywhere = torch.ones_like(units, dtype=torch.bool)
        each = layer.structure.units_kept(layer.shape, density)
        if each is not None:
            counts = torch.full((len(units),), each, device=units.device)
            kept = lowest_per_group(units, everywhere, counts)
        else:
            kept = lowest_among(units, everywhere, count := round(density * units.numel()))
            if count == 0:
                starved.append(f"{layer.name!r} ({layer.size} weights)")
        masks.append(layer.expand(kept))
    if starved:
        total = sum(math.prod(layer.shape) for layer in layers)
        raise ConfigError(
            [
                f"sparsity.density: {config.density:g} with init={config.init} leaves nothing of "
                f"{', '.join(starved)}; use a larger density (there are {total:,} weights), "
                "sparsity.init=erk, or sparsity.exclude"
            ]
        )
    return masks
