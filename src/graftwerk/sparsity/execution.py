"""In which form a layer computes: dense with zeros, or on sparse matrices where that is faster."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from graftwerk.axes import Sync
from graftwerk.errors import ConfigError
from graftwerk.sparsity.compact import Compact
from graftwerk.sparsity.kernels import (
    bsr_linear,
    csr_linear,
    pattern,
    semi_structured_linear,
)
from graftwerk.sparsity.masks import MaskedWeight
from graftwerk.sparsity.structure import Block, NofM

REPEATS = 5
"""Measurements of which the median counts."""
SEMI_STRUCTURED = 64
"""What torch's 2:4 format cuts the sides of a matrix into, at most."""
VALUES_ALONE = ("csr", "bsr")
"""Forms that never look at the dense weight, so that it may sleep."""
AMPERE = (8, 0)
"""The first compute capability with sparse tensor cores."""


class Execution:
    """The forward pass of a linear layer in a form ("dense", "csr", "bsr", "semi_structured").

    `whole` makes the next pass dense whatever the form, for updates that need the gradients of
    weights that don't exist yet.
    """

    def __init__(self, module: nn.Linear, compact: Compact, sync: Sync) -> None:
        self.module, self.compact = module, compact
        self._sync = sync
        self.form = "dense"
        self.times: dict[str, float] = {}
        """Seconds of a forward and backward pass by form, of those that were measured."""
        self.whole = False
        module.forward = self._forward  # pyright: ignore[reportAttributeAccessIssue]
        module.register_state_dict_post_hook(partial(_save, compact))

    @property
    def forms(self) -> list[str]:
        """Those that the layer can take on its device, among as many processes."""
        forms, layer = ["dense"], self.compact.layer
        if alone(self._sync):
            forms += VALUES_ALONE if isinstance(layer.structure, Block) else ["csr"]
        if layer.structure == NofM(2, 4) and semi_structured_problem(layer) is None:
            forms.append("semi_structured")
        return forms

    def use(self, form: str) -> None:
        self.form = form
        self.rebuild()

    def see(self, *, whole: bool, weight: bool) -> None:
        """In the next step: the gradients of all weights, or at least the weights themselves."""
        self.whole = whole
        self.compact.hold(dense=whole or weight or self.form not in VALUES_ALONE)

    def rebuild(self) -> None:
        """Follow the masks."""
        layer = self.compact.layer
        if self.form == "csr":
            self._places = pattern(layer.mask)
        elif self.form == "bsr":
            assert isinstance(layer.structure, Block)
            side = layer.structure.side
            blocks = layer.mask.unflatten(0, (-1, side)).unflatten(2, (-1, side))
            self._places = pattern(blocks.any(3).any(1))

    def fastest(self, rows: int) -> str:
        """The form whose forward and backward pass take the least time on so many inputs, in the
        precision that autocast has now, on average over ranks."""
        weight = self.module.weight
        x_ni = torch.randn(rows, self.module.in_features, device=weight.device, dtype=weight.dtype)
        forms = [form for form in self.forms if form != "semi_structured" or _halves(x_ni)]
        if len(forms) == 1:
            return forms[0]
        times = [self._time(form, x_ni.requires_grad_()) for form in forms]
        mean = self._sync.mean_(torch.tensor(times, device=weight.device)).tolist()
        self.times = dict(zip(forms, mean, strict=True))
        return min(self.times, key=lambda form: self.times[form])

    def _time(self, form: str, x_ni: Tensor) -> float:
        self.use(form)
        weights = [self.compact.values if form in VALUES_ALONE else self.module.weight, x_ni]
        times: list[float] = []
        for _ in range(REPEATS + 1):
            began = time.perf_counter()
            y = self._forward(x_ni).sum()
            with torch.autocast(x_ni.device.type, enabled=False):  # as in training
                torch.autograd.grad(y, weights)
            if x_ni.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    def _forward(self, x: Tensor) -> Tensor:
        module, values = self.module, self.compact.values
        dense = self.form == "dense" or (self.form == "semi_structured" and not _halves(x))
        if self.whole or dense:
            return F.linear(x, module.weight, module.bias)
        x_ni = x.reshape(-1, module.in_features)
        if self.form == "semi_structured":
            y_no = semi_structured_linear(x_ni, module.weight, module.bias)
            return y_no.reshape(*x.shape[:-1], module.out_features)
        if self.form == "csr":
            y_no = csr_linear(x_ni, values, module.bias, self._places)
        else:
            assert isinstance(self.compact.layer.structure, Block)
            side = self.compact.layer.structure.side
            blocks = values.view(-1, side, side)
            y_no = bsr_linear(x_ni, blocks, module.bias, self._places)
        return y_no.reshape(*x.shape[:-1], module.out_features)

    def __str__(self) -> str:
        """``"hidden: csr (dense 0.45 ms, csr 0.21 ms)"``"""
        times = ", ".join(f"{form} {1e3 * time:.3g} ms" for form, time in self.times.items())
        return f"{self.compact.layer.name}: {self.form}{times and f' ({times})'}"


def _save(
    compact: Compact, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any
) -> None:
    """What is saved or averaged is dense in all forms."""
    del module, metadata
    if compact.sleeps:
        state[prefix + "weight"] = compact.dense()


def _halves(x: Tensor) -> bool:
    """Whether products are in half precision now, as those of the 2:4 format always are."""
    return torch.is_autocast_enabled(x.device.type)


def executions(
    net: nn.Module, compact: list[Compact], sync: Sync, positions: Mapping[str, int]
) -> list[Execution]:
    """Of the linear layers; others stay dense with zeros, and so do those whose weights the network
    reads past their forward pass, which therefore have no positions."""
    found = [(net.get_submodule(c.layer.name), c) for c in compact if c.layer.name in positions]
    return [Execution(module, c, sync) for module, c in found if type(module) is nn.Linear]


def alone(sync: Sync) -> bool:
    """Whether nobody else has gradients or weights that this process would have to agree with."""
    return sync.replicated and (not dist.is_initialized() or dist.get_world_size() == 1)


def semi_structured_problem(layer: MaskedWeight) -> str | None:
    """Why torch's 2:4 format can't hold a weight where it is."""
    device = layer.weight.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return format_problem(layer.shape, device.type, capability)


def format_problem(
    shape: tuple[int, ...], device: str, capability: tuple[int, int] | None
) -> str | None:
    if capability is None:
        return f"needs an NVIDIA GPU, and this run is on {device}"
    if capability < AMPERE:
        return "needs a GPU of compute capability 8.0 (Ampere) or newer"
    if any(side % SEMI_STRUCTURED for side in shape):
        multiples = f"multiples of {SEMI_STRUCTURED}"
        return f"needs sides that are {multiples}; leave others out by sparsity.exclude"
    return None


def check_semi_structured(found: list[Execution]) -> None:
    """Refuse at the start what torch's 2:4 format can't do."""
    problems: dict[str, list[str]] = {}
    for execution in found:
        if problem := semi_structured_problem(execution.compact.layer):
            problems.setdefault(problem, []).append(execution.compact.layer.name)
    lines = [f"{problem} (here {', '.join(names)})" for problem, names in problems.items()]
    if not found:
        lines = ["is for linear layers, and none is sparse here"]
    if lines:
        raise ConfigError([f"sparsity.execution: 'semi_structured' {line}" for line in lines])


def check_values_alone(wanted: str, found: list[Execution], sync: Sync) -> None:
    """Gradients of sparse matrices exist in no tensor that replicas could average."""
    problems: list[str] = []
    if not alone(sync):
        problems.append(
            f"sparsity.execution: {wanted!r} works in one process; use 'compact' or 'masked'"
        )
    if not found:
        problems.append(
            f"sparsity.execution: {wanted!r} is for linear layers, and none is sparse here; use "
            "'compact'"
        )
    if problems:
        raise ConfigError(problems)
