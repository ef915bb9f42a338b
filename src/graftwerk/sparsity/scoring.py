"""Scores of a live network: gathered from weights, gradients and optimizer, agreed by all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graftwerk.axes import Batch, Objective, Sync
from graftwerk.sparsity import criteria, probe, state
from graftwerk.sparsity.config import Dst
from graftwerk.sparsity.initialise import random_scores
from graftwerk.sparsity.masks import MaskedWeight, check_numbers, dimensions

PRUNE, GROW = 0, 1
"""Kinds of random numbers drawn for an update."""


class Scorer:
    """Between `begin` and `end` of an update: what weights are worth, and where to grow."""

    def __init__(
        self,
        config: Dst,
        layers: Sequence[MaskedWeight],
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        sync: Sync,
        seed: int,
    ) -> None:
        self.config = config
        self.layers = layers
        self.running: list[Tensor] = []
        """s of the running criteria, [out, in, …] each; empty where none is in use."""
        self._objective, self._optimizer, self._sync, self._seed = objective, optimizer, sync, seed
        if config.prune.startswith("running"):
            self.running = [torch.zeros_like(layer.weight.data) for layer in layers]

    @torch.no_grad()
    def watch(self) -> None:
        """After each backward pass: ``s <- β s + (1 − β) score``."""
        score = criteria.CRITERIA[self.config.prune] if self.running else None
        for running, layer in zip(self.running, self.layers, strict=False):
            assert score is not None
            running.lerp_(score(layer.weight, layer.grad), 1 - self.config.beta)

    def begin(self, t: int, batch: Batch | None) -> None:
        self._t, self._batch = t, batch
        self._hessian_grads: list[Tensor] | None = None
        self._index = [layer.index() for layer in self.layers]

    def end(self) -> None:
        self._hessian_grads, self._index = None, []
        for running in self.running:
            running.zero_()

    def worth(self, criterion: str) -> list[Tensor]:
        """What each active unit is worth; zeros elsewhere. [g, m] for each layer

        Raises GraftwerkError where a score is no number, on all ranks alike.
        """
        scores = [self._sync.mean_(score) for score in self._active(criterion)]
        check_numbers(f"sparsity.prune: {criterion!r}", self.layers, scores)
        return [
            layer.unit_scores(self._normalized(layer.dense(score, i), criterion))
            for layer, score, i in zip(self.layers, scores, self._index, strict=True)
        ]

    def growth(self) -> list[Tensor]:
        """How promising each unit is. [g, m] for each layer"""
        layers = self.layers
        if self.config.grow == "random":
            scores = [
                random_scores(layer.weight, self._seed, self._t, i, GROW)
                for i, layer in enumerate(layers)
            ]
        elif self.config.grow == "gradient":
            scores = [self._sync.mean_(layer.grad.abs()) for layer in layers]
        else:
            scores = [self._sync.mean_(self._momentum(layer).abs()) for layer in layers]
        return [layer.unit_scores(s) for layer, s in zip(layers, scores, strict=True)]

    def importance(self, survivors: Sequence[Tensor]) -> list[float]:
        """Mean |w|, |g| or |momentum| of the weights that are left in each layer."""
        values = {
            "magnitude": lambda layer: layer.weight,
            "gradient": lambda layer: layer.grad,
            "momentum": self._momentum,
        }[self.config.redistribute]
        means = [
            values(layer)[layer.expand(left)].abs().mean()
            if left.any()
            else torch.zeros((), device=layer.weight.device)
            for layer, left in zip(self.layers, survivors, strict=True)
        ]
        return self._sync.mean_(torch.stack(means)).tolist()

    def _active(self, criterion: str) -> list[Tensor]:
        """Scores [n] of the n active weights of each layer, as this rank has them."""
        layers, places = self.layers, self._index

        def active(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [t.flatten().index_select(0, i) for t, i in zip(tensors, places, strict=True)]

        if criterion == "random":
            return active(
                [
                    random_scores(layer.weight, self._seed, self._t, i, PRUNE)
                    for i, layer in enumerate(layers)
                ]
            )
        if criterion.startswith("running") and criterion == self.config.prune:
            return active(self.running)
        score = criteria.with_gamma(criterion, self.config.gamma)
        second = self._hessian() if criterion == "grasp" else [layer.grad for layer in layers]
        weights = active([layer.weight for layer in layers])
        return [score(w, g) for w, g in zip(weights, active(second), strict=True)]

    def _hessian(self) -> list[Tensor]:
        if self._hessian_grads is None:
            assert self._batch is not None
            weights = [layer.weight for layer in self.layers]
            self._hessian_grads = probe.hessian_gradients(
                self._objective, self._batch, weights, self.config.temperature
            )
        return self._hessian_grads

    def _momentum(self, layer: MaskedWeight) -> Tensor:
        return state.momentum(self._optimizer, layer.weight)

    def _normalized(self, scores: Tensor, criterion: str) -> Tensor:
        """Scores [out, in, …] divided by their sum or largest, over the layer, output or input."""
        if self.config.normalize == "none" or criterion == "set":
            return scores
        dims = dimensions(self.config.normalize, scores.ndim)
        size = scores.abs()
        total = (
            size.sum(dims, keepdim=True)
            if self.config.normalize_by == "sum"
            else size.amax(dims, keepdim=True)
        )
        return scores / total.clamp_min(torch.finfo(scores.dtype).tiny)
