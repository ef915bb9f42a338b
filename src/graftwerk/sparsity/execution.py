"""In which form a layer computes: dense with zeros, or on sparse matrices where that is faster."""

from __future__ import annotations

import statistics
import time

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
from graftwerk.sparsity.structure import Block

REPEATS = 5
"""Measurements of which the median counts."""
SEMI_STRUCTURED = 64
"""What torch's 2:4 format cuts the sides of a matrix into, at most."""


class Execution:
    """The forward pass of a linear layer in a form ("dense", "csr", "bsr", "semi_structured").

    `whole` makes the next pass dense whatever the form, for updates that need the gradients of
    weights that don't exist yet.
    """

    def __init__(self, module: nn.Linear, compact: Compact) -> None:
        self.module, self.compact = module, compact
        self.form = "dense"
        self.whole = False
        module.forward = self._forward  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def forms(self) -> list[str]:
        blocks = isinstance(self.compact.layer.structure, Block)
        return ["dense", "csr", "bsr"] if blocks else ["dense", "csr"]

    def use(self, form: str) -> None:
        self.form = form
        self.rebuild()

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

    def fastest(self, batch: int) -> str:
        """The form whose forward and backward pass take the least time on `batch` rows."""
        x = torch.randn(batch, self.module.in_features, device=self.module.weight.device)
        times = {form: self._time(form, x.to(self.module.weight.dtype)) for form in self.forms}
        return min(times, key=lambda form: times[form])

    def _time(self, form: str, x_ni: Tensor) -> float:
        self.use(form)
        x_ni.requires_grad_()
        weights = [self.module.weight if form == "dense" else self.compact.values, x_ni]
        times: list[float] = []
        for _ in range(REPEATS + 1):
            began = time.perf_counter()
            torch.autograd.grad(self._forward(x_ni).sum(), weights)
            if x_ni.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    def _forward(self, x: Tensor) -> Tensor:
        module, values = self.module, self.compact.values
        if self.whole or self.form == "dense":
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


def executions(net: nn.Module, compact: list[Compact]) -> list[Execution]:
    """Of the linear layers; others stay dense with zeros."""
    found = [(net.get_submodule(c.layer.name), c) for c in compact]
    return [Execution(module, c) for module, c in found if type(module) is nn.Linear]


def alone(sync: Sync) -> bool:
    """Whether nobody else has gradients or weights that this process would have to agree with."""
    return sync.replicated and (not dist.is_initialized() or dist.get_world_size() == 1)


def check_semi_structured(found: list[Execution]) -> None:
    """Refuse at the start what torch's 2:4 format can't do."""
    layers = [execution.compact.layer for execution in found]
    problem = None
    if not layers:
        problem = "is for linear layers, and none is sparse here"
    elif any(not layer.weight.is_cuda for layer in layers):
        problem = f"needs an NVIDIA GPU, and this run is on {layers[0].weight.device.type}"
    elif torch.cuda.get_device_capability(layers[0].weight.device) < (8, 0):
        problem = "needs a GPU of compute capability 8.0 (Ampere) or newer"
    elif odd := [layer.name for layer in layers if any(n % SEMI_STRUCTURED for n in layer.shape)]:
        problem = (
            f"needs sides that are multiples of {SEMI_STRUCTURED}; leave out {', '.join(odd)} by "
            "sparsity.exclude"
        )
    if problem:
        raise ConfigError([f"sparsity.execution: 'semi_structured' {problem}"])


def check_alone(wanted: str, found: list[Execution], sync: Sync) -> None:
    """Gradients of sparse matrices exist in no tensor that replicas could average."""
    problems: list[str] = []
    if not alone(sync):
        problems.append(
            f"sparsity.execution: {wanted!r} works in one process; use 'compact' or 'masked'"
        )
    if not found and wanted != "auto":
        problems.append(
            f"sparsity.execution: {wanted!r} is for linear layers, and none is sparse here; use "
            "'compact'"
        )
    if problems:
        raise ConfigError(problems)
