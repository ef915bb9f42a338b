"""Updates of live networks: what goes, what comes, and what stays the same."""

from __future__ import annotations

import itertools
import random
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftwerk import axes
from graftwerk.axes import Batch, Step
from graftwerk.config import load
from graftwerk.errors import ConfigError, GraftwerkError
from graftwerk.objectives.supervised import Supervised
from graftwerk.sparsity.config import Prune, Sparsity
from graftwerk.sparsity.dst import DynamicSparsity
from graftwerk.sparsity.masks import MaskedWeight

TOTAL = 40


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8 * 36, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, images_nchw: Tensor) -> Tensor:
        features = F.gelu(self.norm(self.conv(images_nchw))).flatten(1)
        return self.head(F.gelu(self.hidden(features)))


class Live:
    """A network that trains by hand, with its sparsity."""

    def __init__(self, kind: str = "dst", *, optimizer: str = "SGD", **keys: Any) -> None:
        seed = random.SystemRandom().randrange(2**32)
        print(f"seed {seed}")
        torch.manual_seed(seed)
        self.objective = Supervised(Net().double(), loss="ce", smoothing=0.0)
        options = {"lr": 0.05} | ({"momentum": 0.9} if optimizer == "SGD" else {})
        self.optimizer = getattr(torch.optim, optimizer)(self.objective.parameters(), **options)
        images = torch.randn(16, 2, 8, 8, dtype=torch.float64)
        self.batch = Batch(images, torch.arange(16) % 4, torch.arange(16))
        tree = {"kind": kind, "every": 5, "density": 0.3, "execution": "masked"} | keys
        config = load(Sparsity, tree)
        self.sparsity: Any = config.build()
        self.sparsity.attach(
            self.objective, self.optimizer, axes.Sync(), self.batch, seed=seed, total_steps=TOTAL
        )
        self.number = 0

    @property
    def layers(self) -> list[MaskedWeight]:
        return self.sparsity.layers

    @property
    def counts(self) -> list[int]:
        return [layer.active for layer in self.layers]

    def backward(self) -> Step:
        self.optimizer.zero_grad()
        self.objective(self.batch).loss.backward()
        step = Step(self.number, epoch=0, total=TOTAL, batch=self.batch)
        self.number += 1
        return step

    def steps(self, count: int) -> None:
        for _ in range(count):
            step = self.backward()
            self.sparsity.before_step(step)
            self.optimizer.step()
            self.sparsity.after_step(step)
            for layer in self.layers:
                assert not layer.weight[~layer.mask].any()
                assert int(layer.mask.sum()) == layer.active


CRITERIA = get_args(Prune)


@pytest.mark.parametrize("prune", CRITERIA)
@pytest.mark.parametrize("grow", ["random", "gradient", "momentum"])
def test_counts_stay_exact_whatever_the_criterion(prune: str, grow: str) -> None:
    live = Live(prune=prune, grow=grow, threshold=0.03)
    before, masks = live.counts, [layer.mask.clone() for layer in live.layers]
    live.steps(11)
    assert live.counts == before
    assert any(not torch.equal(m, layer.mask) for m, layer in zip(masks, live.layers, strict=True))


@pytest.mark.parametrize("prune", ["magnitude", "snip", "mest", "random", "grasp"])
@pytest.mark.parametrize("structure", ["1:2", "fan_in", "block2"])
def test_every_criterion_keeps_the_structure(prune: str, structure: str) -> None:
    density = 0.5 if structure == "1:2" else 0.3
    live = Live(prune=prune, structure=structure, density=density, every=1, rate=0.5)
    live.steps(6)
    for layer in live.layers:
        if structure == "1:2":
            pairs = layer.mask.movedim(1, -1).reshape(-1, 2)
            assert (pairs.sum(1) == 1).all()
        elif structure == "fan_in":
            assert len(layer.mask.flatten(1).sum(1).unique()) == 1
        else:
            matrix = layer.mask.flatten(1)
            blocks = matrix.unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).sum((1, 3))
            assert set(blocks.unique().tolist()) <= {0, 4}


def test_an_update_prunes_the_smallest_and_grows_the_largest_gradients() -> None:
    live = Live(every=1, prune="magnitude", grow="gradient", update="before_step", rate=0.4)
    step = live.backward()
    layer = live.layers[1]
    mask, weight, grad = layer.mask.clone(), layer.weight.detach().clone(), layer.grad.clone()
    live.sparsity.before_step(step)
    count = -int(-live.sparsity.rate(1) * mask.sum() // 1)
    active = mask.flatten().nonzero().squeeze(1)
    by_size = weight.flatten()[active].abs().argsort(stable=True)
    survivors = mask.clone().flatten()
    survivors[active[by_size[:count]]] = False
    free = (~survivors).nonzero().squeeze(1)
    by_grad = grad.flatten()[free].abs().argsort(descending=True, stable=True)
    expected = survivors.clone()
    expected[free[by_grad[:count]]] = True
    assert torch.equal(layer.mask.flatten(), expected)
    kept = survivors.view_as(mask)
    assert torch.equal(layer.weight[kept], weight[kept])
    assert not layer.weight[~kept].any()


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_grown_weights_have_fresh_state_unless_as_published(optimizer: str) -> None:
    for fresh in (True, False):
        live = Live(optimizer=optimizer, fresh=fresh, every=4, prune="magnitude", grow="random")
        live.steps(3)
        step = live.backward()
        live.sparsity.before_step(step)
        live.optimizer.step()
        before = live.layers[1].mask.clone()
        live.sparsity.after_step(step)
        layer = live.layers[1]
        grown = layer.mask & ~before
        assert grown.any()
        name = "momentum_buffer" if optimizer == "SGD" else "exp_avg"
        momentum = live.optimizer.state[layer.weight][name]
        assert bool(momentum[grown].any()) is not fresh
        assert momentum[layer.mask & ~grown].any()


def test_a_dense_network_returns_unchanged_as_published_and_restarts_when_fresh() -> None:
    for fresh in (False, True):
        live = Live(density=1.0, fresh=fresh, every=1, rate=0.5, grow="random")
        step = live.backward()
        live.sparsity.before_step(step)
        live.optimizer.step()
        weight = live.layers[1].weight.detach().clone()
        live.sparsity.after_step(step)
        assert torch.equal(live.layers[1].weight, weight) is not fresh
        assert live.counts == [layer.size for layer in live.layers]


def test_updates_stop() -> None:
    live = Live(stop_at=0.5, every=1)
    live.steps(TOTAL // 2)
    masks = [layer.mask.clone() for layer in live.layers]
    live.steps(4)
    assert all(torch.equal(m, layer.mask) for m, layer in zip(masks, live.layers, strict=True))


@pytest.mark.parametrize("redistribute", ["magnitude", "gradient", "momentum", "global"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_densities_move_between_layers_and_the_total_stays(redistribute: str, scope: str) -> None:
    live = Live(redistribute=redistribute, scope=scope, every=1)
    before = live.counts
    live.steps(5)
    assert sum(live.counts) == sum(before)
    assert live.counts != before
    assert min(live.counts) > 0


def test_global_scope_alone_leaves_densities_where_they_are() -> None:
    live = Live(scope="global", prune="snip", every=1)
    before = live.counts
    live.steps(5)
    assert live.counts == before


@pytest.mark.parametrize("kind", ["gmp", "granet"])
def test_dense_to_sparse_arrives_at_the_density(kind: str) -> None:
    live = Live(kind=kind, density=0.1, every=2)
    start = live.sparsity.density
    assert start == pytest.approx(1.0 if kind == "gmp" else 0.5, abs=0.01)
    live.steps(TOTAL - 1)
    assert live.sparsity.density == pytest.approx(0.1, abs=0.005)


def test_exploration_counts_every_weight_that_was_ever_active() -> None:
    live = Live(every=1, grow="random")
    seen = [layer.mask.clone() for layer in live.layers]
    for _ in range(6):
        live.steps(1)
        seen = [s | layer.mask for s, layer in zip(seen, live.layers, strict=True)]
    ever = sum(int(s.sum()) for s in seen) / sum(s.numel() for s in seen)
    assert live.sparsity.metrics()["exploration"] == pytest.approx(ever)
    assert ever > live.sparsity.density


def test_compared_criteria_are_logged() -> None:
    live = Live(prune="snip", compare=["magnitude", "random"])
    live.steps(5)
    overlap = live.sparsity.metrics()
    assert overlap["jaccard/snip-magnitude"] > overlap["jaccard/magnitude-random"]
    assert "jaccard/snip-random" in overlap


def test_overlaps_of_layers_are_logged_once_after_each_update() -> None:
    live = Live(prune="snip", compare=["magnitude", "random"])
    live.steps(4)
    step, sparsity = live.backward(), live.sparsity
    active = [layer.units() for layer in live.layers]
    with torch.no_grad():
        sparsity._scorer.begin(step.number + 1, step.batch)
        choices = {
            name: sparsity._prune(name, step.number + 1, active)
            for name in ("snip", "magnitude", "random")
        }
    sparsity.before_step(step)
    saved, found = sparsity.state_dict(), sparsity.metrics()
    for one, other in itertools.combinations(choices, 2):
        for layer, *of_pair in zip(live.layers, choices[one], choices[other], strict=True):
            p, q = ({*units.flatten().nonzero().flatten().tolist()} for units in of_pair)
            overlap = found[f"jaccard/{one}-{other}/{layer.name}"]
            assert overlap == pytest.approx(len(p & q) / len(p | q))
    assert not any(name.count("/") == 2 for name in sparsity.metrics())
    assert "jaccard/snip-random" in sparsity.metrics()
    sparsity.load_state_dict(saved)  # a stop between the update and the next record
    assert sparsity.metrics() == found


def test_scores_leave_no_trace_in_the_network() -> None:
    live = Live(prune="grasp", init="grasp")
    state = {k: v.clone() for k, v in live.objective.net.state_dict().items() if "norm" in k}
    generator = torch.get_rng_state()
    step = live.backward()
    after_forward = live.objective.net.state_dict()
    state = {k: after_forward[k].clone() for k in state}
    live.number = 4
    step.number = 4
    live.sparsity.before_step(step)
    after = live.objective.net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    assert torch.equal(generator, torch.get_rng_state())


def test_gradients_that_overflow_put_an_update_off() -> None:
    live = Live(every=5, prune="snip")
    live.steps(4)
    step, mask = live.backward(), live.layers[0].mask.clone()
    grads = [layer.grad.clone() for layer in live.layers]
    for layer in live.layers:
        layer.grad.fill_(torch.inf)
    live.sparsity.before_step(step)
    assert torch.equal(live.layers[0].mask, mask)
    for layer, grad in zip(live.layers, grads, strict=True):
        layer.grad.copy_(grad)
    live.optimizer.step()
    live.sparsity.after_step(step)
    live.steps(1)
    assert not torch.equal(live.layers[0].mask, mask)


def test_weights_that_are_not_finite_end_the_run() -> None:
    live = Live(every=1)
    step = live.backward()
    with torch.no_grad():
        live.layers[1].weight[live.layers[1].mask] = torch.nan
    with pytest.raises(GraftwerkError, match=r"no longer finite in step 1.*optim.lr"):
        live.sparsity.after_step(step)


def test_scores_that_are_no_numbers_are_named_and_nothing_changes() -> None:
    """GraSP's own passes overflow where those of training did not."""
    live = Live(every=1, prune="grasp")
    step, masks = live.backward(), [layer.mask.clone() for layer in live.layers]
    step.batch = live.batch._replace(images_nchw=torch.full((16, 2, 8, 8), torch.nan).double())
    with pytest.raises(GraftwerkError, match=r"sparsity.prune: 'grasp' finds .* in conv, hidden"):
        live.sparsity.before_step(step)
    assert all(torch.equal(m, layer.mask) for m, layer in zip(masks, live.layers, strict=True))


@pytest.mark.parametrize("init", ["snip", "grasp", "magnitude"])
def test_first_scores_that_are_no_numbers_are_named(init: str) -> None:
    live = Live()
    with torch.no_grad():
        live.objective.net.get_parameter("hidden.weight")[0, 0] = torch.nan
    other = DynamicSparsity(load(Sparsity, {"kind": "dst", "init": init}))  # pyright: ignore[reportArgumentType]
    with pytest.raises(GraftwerkError, match=rf"sparsity.init: '{init}' finds scores .*hidden"):
        other.attach(
            live.objective, live.optimizer, axes.Sync(), live.batch, seed=0, total_steps=TOTAL
        )


def test_momentum_growth_needs_momentum() -> None:
    live = Live(optimizer="Adagrad", grow="momentum")
    with pytest.raises(ConfigError, match=r"sparsity.grow: 'momentum' is not kept by Adagrad"):
        live.steps(1)


def test_resume_goes_on_with_the_same_bits() -> None:
    live = Live(prune="running_snip", every=3)
    live.steps(7)
    saved = live.sparsity.state_dict()
    other = DynamicSparsity(live.sparsity.config)
    other.bind(live.objective, live.optimizer, axes.Sync(), seed=3, total_steps=TOTAL)
    other.load_state_dict(saved)
    assert all(
        torch.equal(one.mask, two.mask) and one.active == two.active
        for one, two in zip(live.layers, other.layers, strict=True)
    )
    assert other.exploration == live.sparsity.exploration
    assert all(
        torch.equal(one, two)
        for one, two in zip(saved["running"], other.state_dict()["running"], strict=True)
    )
    assert any(running.any() for running in saved["running"])


@pytest.mark.parametrize(
    ("key", "value"), [("density", 0.2), ("prune", "snip"), ("grow", "random")]
)
def test_resume_with_other_settings_is_refused(key: str, value: Any) -> None:
    live = Live()
    other = Live(**{key: value})
    with pytest.raises(GraftwerkError, match=rf"sparsity.{key}: the checkpoint was made with"):
        other.sparsity.load_state_dict(live.sparsity.state_dict())
