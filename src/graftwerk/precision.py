"""Mixed precision: fp32 weights, and activations in what the run asks for."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The order of a step is `backward`…, `unscale`, `clip`, `step`.

    With fp16 the loss is multiplied by a scale, so that small gradients don't vanish; `unscale`
    divides it out again, and `step` halves it after an overflow and doubles it after 2000 steps
    without one. bf16 and fp32 have the range that they need.
    """

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device) -> None:
        self._device_type = device.type
        self._low = LOW.get(name)
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device_type, self._low, enabled=self._low is not None)

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """Gradients of ``weight · loss``; all of them NaN where the loss is not finite."""
        poison = 0 * loss.detach()  # NaN for infinities and NaN, else nothing
        self._scaler.scale(loss * (weight + poison)).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients get their true size; those that overflowed are not finite."""
        self._scaler.unscale_(optimizer)

    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Shrink all gradients together to a 2-norm of `max_norm`; the norm before."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def step(self, optimizer: torch.optim.Optimizer, *, skipped: bool) -> None:
        """The optimizer's step, unless gradients were useless: then no weight moves."""
        if not skipped:
            self._scaler.step(optimizer)
        self._scaler.update()

    @property
    def scale(self) -> float:
        """Of the loss; 1 but for fp16."""
        return self._scaler.get_scale()

    def state_dict(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state)
