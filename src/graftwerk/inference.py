"""Exported networks for inference, their linear layers on sparse matrices where asked for."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from graftwerk.errors import ConfigError
from graftwerk.models import factory  # so that timm knows this package's networks
from graftwerk.models.weights import load_weights, read_state_dict

del factory
REPEATS = 5
"""Measurements of which the median counts."""


def load(
    folder: Path | str, execution: Literal["dense", "csr", "auto"] = "dense", *, batch: int = 1
) -> nn.Module:
    """The network of a folder that `graftwerk export` wrote, dense or compact, in eval mode.

    With `csr` linear layers hold only what is not zero and multiply sparse matrices; `auto` does so
    where that is faster for `batch` inputs on this machine. Raises ConfigError where `folder` is no
    export, CheckpointError where its weights are damaged.
    """
    config = Path(folder) / "config.json"
    if not config.exists():
        raise ConfigError([f"{folder}: no exported network (it has no config.json)"])
    facts: dict[str, Any] = json.loads(config.read_text())
    net = timm.create_model(
        facts["architecture"],
        num_classes=facts["num_classes"],
        in_chans=facts["pretrained_cfg"]["input_size"][0],
        **facts["model_args"],
    )
    load_weights(net, read_state_dict(Path(folder)))
    net.eval().requires_grad_(False)
    if execution != "dense":
        _sparsify(net, None if execution == "csr" else batch)
    return net


class SparseLinear(nn.Module):
    """``x Wᵀ + b`` with W [out, in] in CSR. For inference alone."""

    crow: Tensor
    col: Tensor
    values: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        csr = linear.weight.detach().to_sparse_csr()
        self.shape = (linear.out_features, linear.in_features)
        self.register_buffer("crow", csr.crow_indices().int())
        self.register_buffer("col", csr.col_indices().int())
        self.register_buffer("values", csr.values().clone())
        self.bias: nn.Parameter | None = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        w_oi = torch.sparse_csr_tensor(
            self.crow, self.col, self.values, self.shape, check_invariants=False
        )
        y_no = (w_oi @ x.reshape(-1, self.shape[1]).t().contiguous()).t()
        y_no = y_no if self.bias is None else y_no + self.bias
        return y_no.reshape(*x.shape[:-1], self.shape[0])


def _sparsify(net: nn.Module, batch: int | None) -> None:
    """Put sparse layers in the place of linear ones; with `batch`, of those that gain by it."""
    for name, module in list(net.named_modules()):
        if type(module) is nn.Linear:
            sparse = SparseLinear(module)
            if batch is None or _time(sparse, module, batch) < _time(module, module, batch):
                net.set_submodule(name, sparse)


@torch.inference_mode()
def _time(module: nn.Module, linear: nn.Linear, batch: int) -> float:
    x = torch.randn(batch, linear.in_features, dtype=linear.weight.dtype)
    times: list[float] = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        module(x)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
