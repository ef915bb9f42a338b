from __future__ import annotations

import random

import timm
import torch
from torch import Tensor, nn

from graftwerk.axes import Batch
from graftwerk.objectives.supervised import Supervised
from graftwerk.sparsity import probe


def test_hessian_times_gradient_of_attention_is_that_of_finite_differences() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    torch.manual_seed(seed)
    net = timm.create_model("test_vit", num_classes=5, drop_path_rate=0.0).double().eval()
    objective = Supervised(net, loss="ce", smoothing=0.0)
    images = torch.randn(2, 3, 160, 160, dtype=torch.float64)
    batch = Batch(images, torch.randint(5, (2,)), torch.arange(2))
    weights = [p for p in net.parameters() if p.ndim > 1]
    grads = probe.gradients(objective, batch, weights)
    found = probe.hessian_gradients(objective, batch, weights, temperature=1.0)
    step = 1e-5 / torch.stack([grad.norm() for grad in grads]).norm().item()
    ahead, behind = (shifted(objective, batch, weights, grads, s) for s in (step, -step))
    for one, after, before in zip(found, ahead, behind, strict=True):
        expected = (after - before) / (2 * step)
        assert (one - expected).norm() < 1e-5 * expected.norm() + 1e-9


def shifted(
    objective: Supervised,
    batch: Batch,
    weights: list[nn.Parameter],
    grads: list[Tensor],
    step: float,
) -> list[Tensor]:
    """The gradients at ``w + step · g``."""
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, grad in zip(weights, grads, strict=True):
            weight += step * grad
    found = probe.gradients(objective, batch, weights)
    with torch.no_grad():
        for weight, value in zip(weights, before, strict=True):
            weight.copy_(value)
    return found
