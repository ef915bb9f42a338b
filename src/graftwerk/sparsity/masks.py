"""The weights of a network that may be sparse, and the mask of each."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from graftwerk.errors import ConfigError, GraftwerkError
from graftwerk.sparsity.select import number, places
from graftwerk.sparsity.structure import Unstructured


class MaskedWeight:
    """A weight [out, in, …] and the mask of the same shape and memory layout; True is active.

    A weight that sleeps (`Compact.hold`) has no numbers, and its mask is made of places.
    """

    def __init__(self, name: str, weight: nn.Parameter, structure: Unstructured) -> None:
        self.name = name
        self.weight = weight
        self.structure = structure
        self.shape = tuple(weight.shape)
        self.size = weight.numel()
        self._mask: Tensor | None = torch.ones_like(weight, dtype=torch.bool)
        self._places: Tensor | None = None
        self.factor: Tensor | None = None
        """The mask in the weight's own type, if it is needed at every step: multiplying by it takes
        a single pass."""
        self.active = weight.numel()
        """Weights that the mask keeps."""

    @property
    def mask(self) -> Tensor:
        if self._mask is not None:
            return self._mask
        assert self._places is not None
        nothing = torch.zeros(self.size, dtype=torch.bool, device=self._places.device)
        return nothing.index_fill_(0, self._places, True).view(self.shape)

    def sleep(self, places: Tensor) -> None:
        """Keep the places [n] of the active weights instead of the mask."""
        self._mask, self._places = None, places

    def wake(self) -> None:
        self._mask, self._places = self.mask, None

    @property
    def grad(self) -> Tensor:
        """[out, in, …]; zeros where no gradient reached the weight."""
        grad = self.weight.grad
        return torch.zeros_like(self.weight) if grad is None else grad

    def set(self, mask: Tensor) -> None:
        self.mask.copy_(mask)
        if self.factor is not None:
            self.factor.copy_(mask)
        self.active = number(mask)

    def units(self) -> Tensor:
        """Which units are active. [g, m]"""
        units = self.structure.units(self.mask)
        return units.squeeze(-1) if units.shape[-1] == 1 else units.any(-1)

    def expand(self, units_gm: Tensor) -> Tensor:
        """The mask [out, in, …] of these units."""
        size = self.size // units_gm.numel()
        return self.structure.weights(units_gm[..., None].expand(-1, -1, size), self.shape)

    def unit_scores(self, scores: Tensor) -> Tensor:
        """Scores [out, in, …] summed over the weights of each unit. [g, m]"""
        units = self.structure.units(scores)
        return units.squeeze(-1) if units.shape[-1] == 1 else units.sum(-1)

    def index(self) -> Tensor:
        """Positions [n] of the active weights in the order of [out, in, …]."""
        return places(self.mask.flatten())

    def dense(self, values: Tensor, index: Tensor) -> Tensor:
        """Values [n] of the active weights at their places, zeros elsewhere. [out, in, …]"""
        scores = torch.zeros(self.size, dtype=values.dtype, device=values.device)
        return scores.index_copy_(0, index, values).view(self.shape)


@torch.no_grad()
def apply(layers: Iterable[MaskedWeight]) -> None:
    """``w <- w a`` for all layers that a mask takes something from."""
    layers = [layer for layer in layers if layer.active < layer.size]
    if not layers:
        return
    factors = [layer.mask if layer.factor is None else layer.factor for layer in layers]
    torch._foreach_mul_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        [layer.weight for layer in layers], factors
    )


def check_numbers(what: str, layers: Iterable[MaskedWeight], scores: Iterable[Tensor]) -> None:
    """Raises GraftwerkError where a score is no number, and so has no place in a ranking."""
    bad = [layer.name for layer, s in zip(layers, scores, strict=True) if s.isnan().any()]
    if bad:
        raise GraftwerkError(
            f"{what} finds scores that are no numbers in {', '.join(bad)}: its passes overflow at "
            "these weights; lower optim.lr, or use a criterion without passes of its own "
            "(what was saved before is intact)"
        )


def dimensions(over: str, ndim: int) -> tuple[int, ...]:
    """What to reduce so that one number is left for the layer, each output or each input."""
    keep = {"layer": None, "output": 0, "input": 1}[over]
    return tuple(d for d in range(ndim) if d != keep)


def maskable(
    net: nn.Module, include: Iterable[str], exclude: Iterable[str]
) -> dict[str, nn.Module]:
    """The convolutions and linear layers of `net` that train, by name, in its order.

    Biases, norms, embeddings and positions are no weights of such layers. `include` and `exclude`
    are shell patterns of names. Raises ConfigError where nothing is left or a pattern is idle.
    """
    known: dict[str, nn.Module] = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, _ConvNd | nn.Linear) and module.weight.requires_grad
    }
    wanted = {
        name: module
        for name, module in known.items()
        if _matches(name, include) and not _matches(name, exclude)
    }
    problems = [
        f"sparsity.exclude: no layer is called {pattern!r}; there are {', '.join(known)}"
        for pattern in exclude
        if not any(fnmatchcase(name, pattern) for name in known)
    ]
    if not wanted:
        kind = type(net).__name__
        problems.append(
            f"sparsity.include: leaves no convolution or linear layer of {kind} to be sparse; "
            f"there are {', '.join(known) or 'none that train'}"
        )
    if problems:
        raise ConfigError(problems)
    return wanted


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
