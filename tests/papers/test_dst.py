"""Equality with "Fantastic Weights and How to Find Them" (arXiv 2306.12230) and its sources."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from graftwerk.sparsity import criteria, update
from graftwerk.sparsity.allocation import balanced, erk, uniform_plus
from graftwerk.sparsity.masks import maskable
from graftwerk.sparsity.schedules import constant_rate, cosine_rate, cubic_density, linear_rate
from graftwerk.sparsity.select import lowest, lowest_among, lowest_per_group, split

CONV_CIFAR10 = [(32, 3, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3), (10, 128)]
MLP_CIFAR10 = [(1024, 3072), (512, 1024), (10, 512)]
MLP_HIGGS = [(256, 24), (256, 256), (1, 256)]
LENET_5_CAFFE = [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]
TOY = "ABCDEFGH"
TOY_W = torch.tensor([0.9, -0.8, 0.1, -0.05, 0.3, -0.6, -0.2, 0.02], dtype=torch.float64)
TOY_G = torch.tensor([0.01, 0.02, 0.5, 0.9, 0.4, 0.001, 0.3, 0.05], dtype=torch.float64)


@pytest.fixture
def rng() -> np.random.Generator:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("shapes", "density", "expected"),
    [
        (CONV_CIFAR10, 0.05, [0.478044, 0.055747, 0.027054, 1]),
        (CONV_CIFAR10, 0.1, [1, 0.134406, 0.065227, 1]),
        (MLP_CIFAR10, 0.05, [0.041300, 0.092924, 1]),
        (MLP_CIFAR10, 0.1, [0.083783, 0.188512, 1]),
        (MLP_CIFAR10, 0.2, [0.168750, 0.379688, 1]),
        (MLP_HIGGS, 0.1, [0.399200, 0.068434, 1]),
        (LENET_5_CAFFE, 0.1, [1, 0.087072, 0.088433, 1]),
    ],
)
def test_erk_densities(
    shapes: list[tuple[int, ...]], density: float, expected: list[float]
) -> None:
    densities = erk(shapes, density)
    assert densities == pytest.approx(expected, abs=5e-7)
    sizes = [math.prod(shape) for shape in shapes]
    kept = sum(d * n for d, n in zip(densities, sizes, strict=True))
    assert kept == pytest.approx(density * sum(sizes), rel=1e-12)


def test_erk_densities_of_resnet50() -> None:
    with torch.device("meta"):
        layers = maskable(timm.create_model("resnet50"), ["*"], [])
    shapes = [tuple(layer.get_parameter("weight").shape) for layer in layers.values()]
    found = dict(zip(layers, erk(shapes, 0.2), strict=True))
    expected = {
        "conv1": 0.857191,
        "layer1.0.conv2": 0.361903,
        "layer4.2.conv2": 0.043466,
        "fc": 0.148175,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=5e-7)


def test_uniform_plus_and_balanced_keep_the_total() -> None:
    sizes = [math.prod(shape) for shape in CONV_CIFAR10]
    first, *middle, last = densities = uniform_plus(CONV_CIFAR10, 0.1)
    assert (first, last) == (1, 0.2)
    assert middle[0] == middle[1]
    assert np.dot(densities, sizes) == pytest.approx(0.1 * sum(sizes))
    counts = np.multiply(balanced(CONV_CIFAR10, 0.1), sizes)
    assert counts[0] == 864  # all that it has
    assert counts[1] == pytest.approx(counts[2])
    assert counts.sum() == pytest.approx(0.1 * sum(sizes))


def test_rates() -> None:
    rates = [cosine_rate(t, 35_200, 0.5) for t in (800, 8_800, 17_600, 35_200)]
    assert rates == pytest.approx([0.499369, 0.427509, 0.2525, 0.005], abs=5e-7)
    assert linear_rate(599, 35_200, 0.5) == 0.5
    assert linear_rate(600, 35_200, 0.5) == pytest.approx(0.495)
    assert linear_rate(1200, 35_200, 0.5) == pytest.approx(0.49005)
    assert constant_rate(9, 10, 0.3) == 0.3


def test_cubic_density_starts_and_ends() -> None:
    assert cubic_density(10, 10, 30, 1.0, 0.1) == 1.0
    assert cubic_density(20, 10, 30, 1.0, 0.1) == pytest.approx(0.1 + 0.9 / 8)
    assert cubic_density(30, 10, 30, 1.0, 0.1) == 0.1


@pytest.mark.parametrize(
    ("name", "half", "quarter"),
    [
        ("magnitude", "CDGH", "DH"),
        ("set", "CDGH", "DH"),
        ("snip", "ABFH", "FH"),
        ("mest", "CFGH", "GH"),
        ("reciprocal_sensitivity", "CDGH", "CD"),
    ],
)
def test_rankings_on_the_toy(name: str, half: str, quarter: str) -> None:
    score = criteria.CRITERIA[name](TOY_W, TOY_G)
    for rate, expected in ((0.5, half), (0.25, quarter)):
        gone = lowest(score, update.prune_count(rate, len(TOY)))
        assert "".join(np.array(list(TOY))[gone.numpy()]) == expected


def test_criteria_against_their_formulas(rng: np.random.Generator) -> None:
    w, g = rng.normal(size=(2, 300))
    gamma = rng.uniform(0.5, 3)
    expected = {
        "magnitude": abs(w),
        "snip": abs(w * g),
        "mest": abs(w) + gamma * abs(g),
        "sensitivity": abs(g) / (abs(w) + 1e-8),
        "reciprocal_sensitivity": abs(w) / (abs(g) + 1e-8),
        "grad_step": abs(w - gamma * g),
        "taylor": (w * g) ** 2,
        "snip_plus": -w * g,
        "grasp": w * g,
    }
    for name, value in expected.items():
        score = criteria.with_gamma(name, gamma)(torch.tensor(w), torch.tensor(g))
        np.testing.assert_allclose(score.numpy(), value, rtol=1e-12, err_msg=name)


def test_set_takes_half_of_each_sign(rng: np.random.Generator) -> None:
    w = rng.normal(size=201)
    for count in (1, 2, 7, 40):
        gone = lowest(criteria.set_(torch.tensor(w), torch.zeros(201)), count).numpy()
        positive = np.sort(w[w > 0])[: (count + 1) // 2]
        negative = np.sort(w[w < 0])[::-1][: count // 2]
        assert set(w[gone]) == {*positive, *negative}


def test_set_goes_on_with_the_other_sign_when_one_is_used_up() -> None:
    w = torch.tensor([0.5, -0.1, 0.2, 0.3])
    gone = lowest(criteria.set_(w, torch.zeros(4)), 3)
    assert w[gone].tolist() == pytest.approx([-0.1, 0.2, 0.3])


def test_snip_half_takes_both_ends(rng: np.random.Generator) -> None:
    w, g = rng.normal(size=(2, 100))
    score, order = abs(w * g), np.argsort(abs(w * g))
    gone = lowest(criteria.snip_half(torch.tensor(w), torch.tensor(g)), 7).numpy()
    assert set(score[gone]) == set(score[[*order[:4], *order[-3:]]])


def test_lowest_is_the_stable_sort(rng: np.random.Generator) -> None:
    scores = rng.integers(0, 6, size=500).astype(float)  # ties everywhere
    for count in (0, 1, 83, 250, 499, 500):
        expected = np.zeros(500, dtype=bool)
        expected[np.argsort(scores, kind="stable")[:count]] = True
        np.testing.assert_array_equal(lowest(torch.tensor(scores), count).numpy(), expected)


@pytest.mark.parametrize("highest", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_selecting_among_many_is_the_stable_sort_of_the_candidates(
    ties: bool, highest: bool, rng: np.random.Generator
) -> None:
    """More scores than a sample of them is worth while for, some of them in an order."""
    scores = rng.integers(0, 50, size=200_000).astype(float) if ties else rng.normal(size=200_000)
    scores[: int(rng.integers(100_000))].sort()
    can = rng.random(200_000) < rng.choice([0.1, 0.9])
    order = np.argsort(np.where(can, -scores if highest else scores, np.inf), kind="stable")
    for share in (0.0001, 0.02, 0.5, 0.97):
        expected = np.zeros(200_000, dtype=bool)
        expected[order[: int(share * can.sum())]] = True
        count = int(share * can.sum())
        got = lowest_among(torch.tensor(scores), torch.tensor(can), count, highest=highest)
        np.testing.assert_array_equal(got.numpy(), expected)


def test_lowest_per_group_is_the_stable_sort_of_each(rng: np.random.Generator) -> None:
    scores = rng.integers(0, 4, size=(20, 9)).astype(float)
    can = rng.random((20, 9)) < 0.6
    counts = np.minimum(rng.integers(0, 5, size=20), can.sum(1))
    got = lowest_per_group(torch.tensor(scores), torch.tensor(can), torch.tensor(counts)).numpy()
    for row in range(20):
        candidates = np.flatnonzero(can[row])
        best = candidates[np.argsort(scores[row, candidates], kind="stable")[: counts[row]]]
        assert set(np.flatnonzero(got[row])) == set(best)


def test_split_shares_exactly(rng: np.random.Generator) -> None:
    for _ in range(200):
        layers = int(rng.integers(1, 6))
        limits = [int(x) for x in rng.integers(0, 50, size=layers)]
        shares = [float(x) for x in rng.random(layers) * (rng.random(layers) < 0.8)]
        total = int(rng.integers(0, 1 + sum(limits)))
        counts = split(total, shares, limits)
        assert sum(counts) == total
        assert all(0 <= count <= limit for count, limit in zip(counts, limits, strict=True))
    assert split(10, [1.0, 1.0, 2.0], [99, 99, 99]) in ([3, 2, 5], [2, 3, 5])
    assert split(10, [1.0, 1.0, 8.0], [99, 99, 4]) == [3, 3, 4]


def test_global_pruning_is_one_ranking_that_spares_each_layers_best(
    rng: np.random.Generator,
) -> None:
    scores = [torch.tensor(rng.random((1, n)) + shift) for n, shift in ((50, 0), (80, 0.3), (9, 5))]
    active = [torch.tensor(rng.random(tuple(s.shape)) < 0.5) for s in scores]
    scores[0] -= 7  # the first layer would lose everything
    has = sum(int(a.sum()) for a in active)
    gone = update.prune_globally(scores, active, count := has // 2)
    assert sum(int(g.sum()) for g in gone) == count
    assert all(not (g & ~a).any() for g, a in zip(gone, active, strict=True))
    survivors = active[0] & ~gone[0]
    assert survivors.sum() == 1
    assert scores[0][survivors] == scores[0][active[0]].max()
    others_gone = torch.cat([s[g] for s, g in zip(scores[1:], gone[1:], strict=True)])
    others_stay = torch.cat(
        [s[a & ~g] for s, a, g in zip(scores[1:], active[1:], gone[1:], strict=True)]
    )
    assert others_gone.max() < others_stay.min()


def test_jaccard_of_handmade_choices() -> None:
    def choice(*rows: str) -> list[Tensor]:
        return [torch.tensor([[c == "x" for c in row]]) for row in rows]

    one, other = choice("xx..", "x...."), choice("x.x.", "....x")
    assert update.jaccard(one, other) == pytest.approx(1 / 5)
    assert update.jaccard(one, one) == 1
    assert update.jaccard(choice("...."), choice("....")) == 1
