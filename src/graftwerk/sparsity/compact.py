"""The optimizer sees only the weights that exist: a vector for each masked weight.

Gradient and optimizer state then take memory and time in proportion to the density. For optimizers
that treat each weight alone the result is that of masking a dense step; the norm for clipping
counts the weights that exist.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graftwerk.errors import ConfigError
from graftwerk.sparsity.masks import MaskedWeight
from graftwerk.sparsity.select import places
from graftwerk.sparsity.structure import Block

ELEMENTWISE = {
    *("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax"),
    *("SGDW", "AdamWLegacy", "NAdamW", "NAdamLegacy", "RAdamLegacy", "RMSpropTF", "Lion", "Adan"),
    *("AdaBelief", "Adopt", "LaProp"),
}
"""Classes of torch and timm that do to a weight what depends on its own history alone."""


def elementwise(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__name__ in ELEMENTWISE


def check(optimizer: torch.optim.Optimizer, execution: str) -> None:
    kind = type(optimizer).__name__
    if not elementwise(optimizer):
        raise ConfigError(
            [
                f"sparsity.execution: {execution!r} hands the optimizer vectors of weights, and "
                f"{kind} looks at their whole matrix; use sparsity.execution=masked"
            ]
        )


class Compact:
    """The active weights of a layer as a parameter [n], in the place of the weight in `optimizer`.

    After every step the weight is masked and up to date for whatever reads it (evaluation,
    averages, checkpoints), unless it sleeps: then it has no numbers, and `dense` makes them.
    """

    def __init__(self, layer: MaskedWeight, optimizer: torch.optim.Optimizer) -> None:
        self.layer = layer
        self._optimizer = optimizer
        self.index = self._active()
        self.values = nn.Parameter(flat(layer.weight.detach()).index_select(0, self.index))
        self.frees_gradients = False
        """Gradients of all weights go as soon as those of the active ones are taken, layer by
        layer; else they stay until the step is over."""
        layer.weight.register_post_accumulate_grad_hook(self._take)
        for group in optimizer.param_groups:
            group["params"] = [
                self.values if parameter is layer.weight else parameter
                for parameter in group["params"]
            ]
        if layer.weight in optimizer.state:
            own = optimizer.state.pop(layer.weight)
            optimizer.state[self.values] = {key: self._compacted(v) for key, v in own.items()}

    @torch.no_grad()
    def _take(self, weight: Tensor) -> None:
        """In the backward pass of each micro-batch."""
        if self.frees_gradients:
            assert weight.grad is not None
            grad = self._active_part(weight.grad)
            self.values.grad = grad if self.values.grad is None else self.values.grad + grad
            weight.grad = None

    def _active_part(self, grad: Tensor) -> Tensor:
        return flat(as_laid_out(grad, self.layer.weight)).index_select(0, self.index)

    @torch.no_grad()
    def gather(self, *, weights: bool) -> None:
        """Before the step: the gradient of the active weights, and the weights where they moved."""
        if weights:
            torch.index_select(flat(self.layer.weight), 0, self.index, out=self.values.data)
        if self.layer.weight.grad is not None:
            self.values.grad = self._active_part(self.layer.weight.grad)

    @torch.no_grad()
    def scatter(self) -> None:
        """After the step: the weight takes over the values."""
        if not self.sleeps:
            flat(self.layer.weight).index_copy_(0, self.index, self.values)

    @property
    def sleeps(self) -> bool:
        return self.layer.weight.numel() != self.layer.size

    def hold(self, *, dense: bool) -> None:
        """Keep the weight [out, in], or let it sleep: a parameter without numbers, which nobody
        multiplies by mistake."""
        layer = self.layer
        if dense and self.sleeps:
            layer.weight.data = self.dense()
            layer.wake()
        elif not dense and not self.sleeps:
            layer.weight.data = self.values.new_empty(0)
            layer.sleep(self.index)

    @torch.no_grad()
    def dense(self) -> Tensor:
        """The weight [out, in] made anew from its values."""
        return self.layer.dense(self.values, self.index)

    @torch.no_grad()
    def rebuild(self, fresh: Tensor) -> None:
        """Mask the weight anew; state is zero for weights that are new or `fresh`."""
        own = self._optimizer.state.pop(self.values, {})
        shape, old, weight = self.values.shape, self.index, self.layer.weight
        fresh = as_laid_out(fresh, weight)
        self.index = self._active()
        kept = ~flat(fresh).index_select(0, self.index)
        room = torch.zeros(self.layer.size, dtype=self.values.dtype, device=old.device)

        def moved(vector: Tensor) -> Tensor:
            room.zero_().index_copy_(0, old, vector.to(room.dtype))
            return (room.index_select(0, self.index) * kept).to(vector.dtype)

        self.values.data = flat(weight.detach()).index_select(0, self.index)
        flat(weight).zero_().index_copy_(0, self.index, self.values)
        self.values.grad = None
        self.gather(weights=False)
        self._optimizer.state[self.values] = {
            name: moved(value) if isinstance(value, Tensor) and value.shape == shape else value
            for name, value in own.items()
        }

    def release(self) -> None:
        """The gradient of all weights is used up: the step is over."""
        self.layer.weight.grad = None

    def _compacted(self, value: Any) -> Any:
        """State that the optimizer made before it saw the values, as Adagrad does."""
        if isinstance(value, Tensor) and value.shape == self.layer.weight.shape:
            return flat(as_laid_out(value, self.layer.weight))[self.index]
        return value

    def _active(self) -> Tensor:
        """Positions of the active weights in memory, in the order of rows, or of blocks."""
        layer = self.layer
        if isinstance(layer.structure, Block) and layer.weight.is_contiguous():
            numbers = torch.arange(layer.size, device=layer.mask.device).view(layer.shape)
            return layer.structure.units(numbers)[0][layer.units()[0]].flatten()
        return places(flat(layer.mask))


def flat(tensor: Tensor) -> Tensor:
    """The numbers of a dense tensor in the order of memory, whatever its layout. A view [n]"""
    return tensor.as_strided((tensor.numel(),), (1,))


def as_laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` in the memory layout of `like`."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
