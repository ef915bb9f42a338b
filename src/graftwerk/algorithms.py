"""Which of torch's algorithms a run may use, and what does not go together."""

from __future__ import annotations

import os

import torch

from graftwerk.errors import ConfigError
from graftwerk.run import Run


def choose_algorithms(deterministic: bool) -> None:
    """Whether torch may use algorithms whose bits differ from call to call (faster on GPUs)."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = not deterministic


def check_execution(run: Run) -> None:
    """The scaler of fp16 unscales gradients before the optimizer's own vectors have them; 2:4
    products are in half precision."""
    execution = getattr(run.sparsity, "execution", None)
    if execution == "semi_structured" and run.precision == "fp32":
        raise ConfigError(
            ["sparsity.execution: 'semi_structured' computes in half precision; set precision=bf16"]
        )
    if run.precision == "fp16" and execution not in (None, "masked"):
        raise ConfigError(
            [f"sparsity.execution: {execution!r} and fp16 don't go together; use bf16, or 'masked'"]
        )


def check_whole(run: Run) -> None:
    """Masks would change modules that must stay as they are."""
    if not run.objective.whole and run.sparsity.kind != "dense":
        raise ConfigError(
            [
                f"sparsity: objective={run.objective.kind} trains a part of the network and leaves "
                f"the rest as it is; use sparsity={run.sparsity.kind} in the fine-tuning"
            ]
        )
