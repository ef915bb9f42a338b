"""Modular training (Ni et al. 2023, "Deep Incubation", arXiv 2212.04129, section 3).

A module M_i of the network takes the place of its small counterpart in a trained meta network, and
alone is trained there, end to end, on labels:

    minimise over θ_i  E [−Σ_c y_c log softmax_c (M̂_K ∘ … ∘ M_i ∘ … ∘ M̂_1 (x))]

What comes before it needs no gradient at all, and what comes after it gradients of its inputs only:
both follow from frozen parameters, with every network as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from graftwerk.errors import CheckpointError, ConfigError
from graftwerk.models.division import Division, hybrid, written
from graftwerk.models.stages import Layout, block_patterns, layout
from graftwerk.models.weights import META, load_exactly, read_trained
from graftwerk.objectives.supervised import Supervised

if TYPE_CHECKING:
    from graftwerk.objectives.config import Incubate as Config


class Incubate(Supervised):
    """`net` is the meta network with the new module in it; all else in it is frozen."""

    def __init__(self, net: nn.Module, config: Config) -> None:
        super().__init__(net, loss=config.loss, smoothing=config.smoothing)
        self._config = config
        places = layout(net)
        inside = hybrid(config.meta_divide, config.divide, config.index)
        division = Division.of(inside, places.depths, key="objective.divide")
        check_windows(net, division, division.like(config.divide), config.index)
        meta = read_trained(config.meta)
        self._load_frozen(places, division, meta)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(places.owner(name, division) == config.index)
        names = [name for name, _ in net.named_modules()]
        modules = Layout(block_patterns(net), names)
        self._frozen = [
            name for name in names if name and modules.owner(name, division) != config.index
        ]
        for module in self._frozen_norms():
            module.track_running_stats = False
        self._meta = digest(meta)

    def _load_frozen(self, places: Layout, division: Division, meta: Mapping[str, Tensor]) -> None:
        """All modules of the meta network but one, which keeps its first weights."""
        config, source = self._config, f"objective.meta: {self._config.meta}"
        small = division.like(config.meta_divide)
        found = places.depths_of(meta)
        if found != small.depths:
            raise CheckpointError(
                f"{source}: has {', '.join(map(str, found))} blocks, and "
                f"objective.meta_divide={written(config.meta_divide)} is another network"
            )
        modules = places.split(meta, small)
        modules[config.index] = places.split(self.net.state_dict(), division)[config.index]
        load_exactly(self.net, places.join(modules), source)

    def _frozen_norms(self) -> list[_BatchNorm]:
        modules = map(self.net.get_submodule, self._frozen)
        return [module for module in modules if isinstance(module, _BatchNorm)]

    def train(self, mode: bool = True) -> Self:
        """The frozen modules train as far as the config says; their statistics never change."""
        super().train(mode)
        if mode:
            for name in self._frozen:
                self.net.get_submodule(name).training = self._config.frozen_drop
            for module in self._frozen_norms():
                module.training = self._config.frozen_norm == "batch"
        return self

    def get_extra_state(self) -> dict[str, str]:
        """What tells the meta network from others: modules of two don't belong together."""
        return {META: self._meta}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Raises `CheckpointError` where the saved state began with another meta network."""
        if state[META] != self._meta:
            raise CheckpointError(
                f"objective.meta: {self._config.meta} is not the meta network that this run began "
                "with; resume=never begins anew with it"
            )


def check_windows(net: nn.Module, inside: Division, whole: Division, index: int) -> None:
    """Swin shifts the windows of every second block of a stage.

    Raises ConfigError where module `index` would begin with the other kind in the meta network.
    """
    turned = [
        stage
        for stage, _ in whole.modules[index]
        if (inside.start(index, stage) - whole.start(index, stage)) % 2
    ]
    if turned and any(hasattr(module, "shift_size") for module in net.modules()):
        raise ConfigError(
            [
                f"objective.meta_divide: module {index} would begin stage {turned[0]} with another "
                f"kind of window in the meta network ({inside.start(index, turned[0])} blocks are "
                f"before it) than in the network ({whole.start(index, turned[0])}); both numbers "
                "should be even, or both odd"
            ]
        )


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and numbers, in any order."""
    found = hashlib.sha256()
    for name in sorted(state):
        value = state[name].contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
