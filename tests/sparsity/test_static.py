"""First masks: which weights exist, and that nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftwerk import axes
from graftwerk.axes import Batch
from graftwerk.config import load, override
from graftwerk.errors import ConfigError
from graftwerk.objectives.supervised import Supervised
from graftwerk.run import Run
from graftwerk.sparsity.allocation import ALLOCATIONS
from graftwerk.sparsity.config import Sparsity


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(1, 2, 8, 8))
        self.conv = nn.Conv2d(2, 8, 3)
        self.norm = nn.LayerNorm([8, 6, 6])
        self.hidden = nn.Linear(288, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, images_nchw: Tensor) -> Tensor:
        features = torch.tanh(self.norm(self.conv(images_nchw + self.embedding)))
        return self.head(torch.tanh(self.hidden(features.flatten(1))))


def attached(
    net: nn.Module | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **keys: Any,
) -> Any:
    torch.manual_seed(5)
    objective = Supervised((net or Net()).to(dtype), loss="ce", smoothing=0.0)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    images_nchw = torch.randn(12, 2, 8, 8).to(dtype)
    batch = Batch(images_nchw, torch.arange(12) % 4, torch.arange(12))
    sparsity: Any = load(Sparsity, {"kind": "static", "density": 0.2} | keys).build()
    sparsity.attach(objective, optimizer, axes.Sync(), batch, seed=seed, total_steps=10)
    sparsity.objective, sparsity.batch = objective, batch
    return sparsity


def test_only_weights_of_convolutions_and_linear_layers_are_masked() -> None:
    sparsity = attached()
    assert [layer.name for layer in sparsity.layers] == ["conv", "hidden", "head"]


@pytest.mark.parametrize("init", ["erk", "uniform", "uniform_plus", "balanced"])
def test_counts_are_rounded_densities(init: str) -> None:
    sparsity = attached(init=init)
    densities = ALLOCATIONS[init]([layer.shape for layer in sparsity.layers], 0.2)
    for layer, density in zip(sparsity.layers, densities, strict=True):
        assert int(layer.mask.sum()) == layer.active == round(density * layer.size)
        assert not layer.weight[~layer.mask].any()


def test_positions_follow_the_seed() -> None:
    one, same, other = (attached(seed=seed).layers[1].mask for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("init", ["snip", "grasp"])
def test_first_scores_are_in_full_precision(init: str) -> None:
    full = attached(init=init, density=0.5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = attached(init=init, density=0.5, dtype=torch.float32)
    for one, other in zip(full.layers, half.layers, strict=True):
        assert torch.equal(one.mask, other.mask)


@pytest.mark.parametrize("init", ["magnitude", "snip", "grasp"])
def test_scored_weights_are_the_best_of_all_layers(init: str) -> None:
    sparsity = attached(density=1.0)
    layers = sparsity.layers
    weights = [layer.weight for layer in layers]
    if init == "grasp":  # H g by finite differences of the gradient along g
        logits = sparsity.objective.net
        images, targets = sparsity.batch.images_nchw, sparsity.batch.targets

        def gradient() -> list[Tensor]:
            loss = F.cross_entropy(logits(images) / 200.0, targets)
            return list(torch.autograd.grad(loss, weights))

        g, eps = gradient(), 1e-2
        sides: list[list[Tensor]] = []
        for sign in (1, -1):
            with torch.no_grad():
                for w, d in zip(weights, g, strict=True):
                    w.add_(d, alpha=sign * eps)
            sides.append(gradient())
            with torch.no_grad():
                for w, d in zip(weights, g, strict=True):
                    w.add_(d, alpha=-sign * eps)
        scores = [w * (a - b) / (2 * eps) for w, a, b in zip(weights, *sides, strict=True)]
    else:
        loss = sparsity.objective(sparsity.batch).loss
        g = torch.autograd.grad(loss, weights)
        pairs = zip(weights, g, strict=True)
        scores = [w.abs() if init == "magnitude" else (w * d).abs() for w, d in pairs]
    everything = torch.cat([score.flatten() for score in scores]).detach()
    count = round(0.2 * everything.numel())
    best = torch.zeros_like(everything, dtype=torch.bool)
    best[everything.argsort(descending=True)[:count]] = True
    got = torch.cat([layer.mask.flatten() for layer in attached(init=init).layers])
    assert int(got.sum()) == count
    assert (got != best).sum() <= (4 if init == "grasp" else 0)


def test_random_positions_keep_the_scored_densities() -> None:
    scored, random = attached(init="snip"), attached(init="snip", positions="random")
    assert [a.active for a in scored.layers] == [b.active for b in random.layers]
    assert not torch.equal(scored.layers[1].mask, random.layers[1].mask)


def test_patterns_choose_layers() -> None:
    sparsity = attached(exclude=["head", "con*"])
    assert [layer.name for layer in sparsity.layers] == ["hidden"]
    assert sparsity.objective.net.head.weight.all()


def test_frozen_weights_are_left_alone() -> None:
    net = Net()
    net.conv.requires_grad_(False)
    assert [layer.name for layer in attached(net).layers] == ["hidden", "head"]


def test_flops_count_positions_times_active_weights() -> None:
    sparsity = attached()
    conv, hidden, head = (layer.active for layer in sparsity.layers)
    dense = 36 * 8 * 18 + 288 * 32 + 32 * 4
    expected = (36 * conv + hidden + head) / dense
    assert sparsity.metrics()["inference_flops"] == pytest.approx(expected)
    assert sparsity.metrics()["density"] == pytest.approx(0.2, abs=1e-4)


def test_scaled_initialisation_divides_by_the_root_of_the_density() -> None:
    plain, scaled = attached(), attached(scale_init=True)
    for one, other in zip(plain.layers, scaled.layers, strict=True):
        factor = (one.active / one.size) ** 0.5
        assert torch.allclose(other.weight * factor, one.weight)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"density": 0}, r"sparsity.density: should be greater than 0"),
        ({"density": 7}, r"sparsity.density: should be at most 1"),
        ({"init": "uniform", "density": 1e-3}, r"leaves nothing of 'conv' \(144 weights\), 'head'"),
        ({"init": "uniform_plus", "density": 1e-3}, r"can't be met by 'uniform_plus'"),
        ({"include": ["nothing*"]}, r"sparsity.include: .*there are conv, hidden, head"),
        ({"exclude": ["hedd"]}, r"sparsity.exclude: no layer is called 'hedd'"),
        ({"structure": "2:4"}, r"structure 2:4 keeps 0.5: set density=0.5"),
        ({"structure": "block16", "density": 0.3}, r"block16 does not fit layer 'conv' \(8×18"),
        ({"structure": "2:4", "density": 0.5}, r"2:4 does not fit layer 'conv' \(2 inputs"),
        ({"kind": "dst", "scope": "global", "prune": "set"}, r"prune=set ranks within a layer"),
        ({"kind": "dst", "grow": "none"}, r"grow=none needs start_density"),
        ({"kind": "dst", "prune": "magnitud"}, r"did you mean 'magnitude'"),
        ({"kind": "dst", "start_density": 0.1}, r"start_density should be at least density"),
    ],
)
def test_what_is_wrong_is_named(keys: dict[str, Any], message: str) -> None:
    def start() -> None:
        tree = {"kind": "static", "density": 0.2} | keys
        override(Run, Run(), {f"sparsity.{key}": value for key, value in tree.items()})
        attached(**keys)

    with pytest.raises(ConfigError, match=message):
        start()


def test_a_network_without_maskable_weights_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, images_nchw: Tensor) -> Tensor:
            return self.norm(images_nchw).mean((1, 2))

    with pytest.raises(ConfigError, match="no convolution or linear layer of Bare"):
        attached(Bare())
