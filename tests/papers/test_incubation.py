"""Deep Incubation (Ni et al. 2023, arXiv 2212.04129): its numbers, and its loss written out."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from graftwerk.axes import Batch
from graftwerk.errors import ConfigError
from graftwerk.incubation import Incubation, Plan, costs, equal_epochs
from graftwerk.models.config import Model
from graftwerk.models.division import Division
from graftwerk.models.factory import build_model, count_parameters
from graftwerk.models.stages import layout
from graftwerk.objectives.config import Incubate
from graftwerk.optim.schedules import factor
from graftwerk.recipes import shipped
from graftwerk.run import Run, peak_lr

SEED = int(np.random.SeedSequence().generate_state(1)[0])
STEPS_PER_EPOCH = 625
FOUR = (1, 1, 1, 1)


@pytest.fixture(autouse=True)
def fresh_numbers() -> None:
    print(f"seed {SEED}")
    torch.manual_seed(SEED)


def runs(name: str, **keys: Any) -> dict[str, Run]:
    found = shipped()[name]()
    assert isinstance(found, Incubation)
    return found.configured(keys)


@functools.cache
def shapes(depth: int) -> nn.Module:
    with torch.device("meta"):
        model = Model(name="vit_base_patch16_224", depths=(depth,))
        return build_model(model, num_classes=1000, in_chans=3)


# ---------------------------------------------------------------- numbers


def test_parameters_of_vit_b() -> None:
    assert count_parameters(shapes(4)) == 29_864_680
    assert count_parameters(shapes(6)) == 44_040_424
    assert count_parameters(shapes(12)) == 86_567_656
    assert len(shapes(12).state_dict()) == 152


def test_modules_of_vit_b() -> None:
    net = shapes(12)
    division = Division.of((3, 3, 3, 3), (12,), key="divide")
    modules = layout(net).split(net.state_dict(), division)
    assert [len(module) for module in modules] == [40, 36, 36, 40]
    assert [sum(tensor.numel() for tensor in module.values()) for module in modules] == [
        22_006_272,
        21_263_616,
        21_263_616,
        22_034_152,
    ]
    assert set(modules[1]) == set(modules[2])
    ends = {0: {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"},
            3: {"norm.weight", "norm.bias", "head.weight", "head.bias"}}  # fmt: skip
    assert {number: set(modules[number]) - set(modules[1]) for number in (0, 3)} == ends


def test_huge_has_no_biases_of_queries() -> None:
    """Section 4 of the formulas: a block has 12 d² + 10 d parameters, ε is 1e-5."""
    model = runs("incubate_vit_huge")["meta"].model
    with torch.device("meta"):
        net = build_model(model, num_classes=1000, in_chans=3)
    d, patch, patches, classes = 1280, 14, 256, 1000
    stem = 3 * patch**2 * d + 2 * d + (patches + 1) * d
    assert count_parameters(net) == 4 * (12 * d**2 + 10 * d) + stem + 2 * d + (d + 1) * classes
    assert {m.eps for m in net.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


RATES = {
    "meta": {0: 1e-6, 1: 1e-6, 2: 1.0095e-4, 10: 9.0055e-4, 20: 1.90005e-3, 21: 1.97826e-3,
             150: 1.01542e-3, 299: 1.02182e-5},
    "module_2": {0: 1e-6, 1: 1e-6, 2: 1.0095e-4, 10: 9.0055e-4, 20: 1.90005e-3, 21: 1.80997e-3},
    "finetune": {0: 2e-3, 1: 2e-3, 10: 1.96049e-3},
}  # fmt: skip


@pytest.mark.parametrize("phase", RATES)
def test_learning_rates(phase: str) -> None:
    run = runs("incubate_vit_base")[phase]
    total = round(run.epochs) * STEPS_PER_EPOCH
    for epoch, rate in RATES[phase].items():
        for step in (epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH - 1):
            found = peak_lr(run) * factor(run.schedule, step, total, STEPS_PER_EPOCH)
            assert found == pytest.approx(rate, rel=5e-6), (phase, epoch)


def test_phases() -> None:
    found = runs("incubate_vit_large")
    modules = [f"module_{number}" for number in range(4)]
    assert list(found) == ["meta", *modules, "assemble", "finetune", "finetune_high"]
    depths = {name: run.network.depths for name, run in found.items()}
    assert depths == {"meta": (4,), **dict.fromkeys(modules, (9,)), "assemble": (24,),
                      "finetune": (24,), "finetune_high": (24,)}  # fmt: skip
    drops = {name: run.model.drop_path for name, run in found.items()}
    assert drops["meta"] == 0
    assert {drops[name] for name in modules} == {0.1}
    assert drops["finetune"] == 0.5
    assert {name: run.epochs for name, run in found.items()} == {
        "meta": 300, **dict.fromkeys(modules, 100), "assemble": 100,
        "finetune": 100, "finetune_high": 30}  # fmt: skip
    assert found["finetune"].optim.clip == 1
    assert found["module_0"].optim.clip is None
    assert found["assemble"].steps == 0


def test_costs() -> None:
    """Over all modules an epoch costs Σᵢ [i/3 + D/K + ⅔(K−1−i)] passes of 3."""
    for depth, count in ((12, 4), (24, 4), (32, 8)):
        plan = Plan(divide=(depth // count,) * count, meta=(1,) * count)
        expected = sum(i / 3 + depth / count + 2 / 3 * (count - 1 - i) for i in range(count))
        meta, hybrids, whole = costs(plan)
        assert (meta, whole) == (3 * count, 3 * depth)
        assert hybrids == pytest.approx(3 * expected)
    plan = Plan(divide=(3, 3, 3, 3), meta=FOUR)
    assert equal_epochs(plan, meta=300, module=100, finetune=100) == pytest.approx(
        (300 * 12 + 100 * 54 + 100 * 36) / 36
    )


# ---------------------------------------------------------------- the hybrid, written out


def slow_forward(state: dict[str, np.ndarray], images: np.ndarray, patch: int, heads: int) -> Any:
    """A pre-norm ViT of as many blocks as `state` has, head on the class token; float64."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    n, c, h, w = images.shape
    cells = images.reshape(n, c, h // patch, patch, w // patch, patch).transpose(0, 2, 4, 1, 3, 5)
    kernel = state["patch_embed.proj.weight"].reshape(-1, c * patch * patch)
    x = cells.reshape(n, -1, c * patch * patch) @ kernel.T + state["patch_embed.proj.bias"]
    d = x.shape[-1]
    x = np.concatenate([np.broadcast_to(state["cls_token"], (n, 1, d)), x], 1) + state["pos_embed"]
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for number in range(depth):
        block = f"blocks.{number}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.reshape(n, -1, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(d // heads)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        x = x + linear(mixed.transpose(0, 2, 1, 3).reshape(n, -1, d), f"{block}.attn.proj")
        inner = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = x + linear(inner, f"{block}.mlp.fc2")
    return linear(norm(x, "norm")[:, 0], "head")


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    return float(
        -(targets * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))).sum(1).mean()
    )


def arrays(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in state.items()}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_loss_of_the_hybrid_and_its_gradient(tmp_path: Path, index: int) -> None:
    """M̂_K ∘ … ∘ M_i ∘ … ∘ M̂_1 on labels that mixing made, against numpy; gradients of θ_i by
    differences, of θ̂ none."""
    model = Model(
        name="vit_tiny_patch16_224", depths=(6,),
        args={"patch_size": 4, "embed_dim": 16, "num_heads": 2},
    )  # fmt: skip
    build = functools.partial(build_model, num_classes=3, in_chans=1, img_size=(8, 8))
    meta = build(model.model_copy(update={"depths": (3,)}))
    torch.save(meta.state_dict(), tmp_path / "meta.pth")
    node = Incubate(
        divide=(2, 2, 2), meta_divide=(1, 1, 1), index=index, meta=tmp_path / "meta.pth"
    )
    objective: Any = node.build(build(node.network(model)), channels=1, sizes={}).double()
    places, target = layout(objective.net), slice(index, index + 2)
    small = places.split(meta.state_dict(), Division.of((1, 1, 1), (3,), key=""))
    own = places.split(
        objective.net.state_dict(),
        Division.of((*(1,) * index, 2, *(1,) * (2 - index)), (4,), key=""),
    )[index]
    modules = [arrays(module) for module in (*small[:index], own, *small[index + 1 :])]
    images, targets = np.random.default_rng(SEED).normal(size=(4, 1, 8, 8)), np.eye(3)[[0, 1, 2, 0]]
    targets = 0.7 * targets + 0.3 * targets[::-1]

    def loss() -> float:
        return cross_entropy(slow_forward(places.join(modules), images, 4, 2), targets)

    batch = Batch(torch.from_numpy(images), torch.from_numpy(targets.copy()), torch.arange(4))
    output = objective.train()(batch)
    assert output.loss.item() == pytest.approx(loss(), rel=1e-10)
    output.loss.backward()
    trained = objective.net.blocks[target]
    for gradient, name in (
        (trained[0].attn.qkv.weight.grad, "blocks.0.attn.qkv.weight"),
        (trained[1].mlp.fc2.bias.grad, "blocks.1.mlp.fc2.bias"),
    ):
        place = np.unravel_index(int(gradient.abs().argmax()), gradient.shape)
        before, step = modules[index][name][place], 1e-5
        ends: list[float] = []
        for sign in (1, -1):
            modules[index][name][place] = before + sign * step
            ends.append(loss())
        modules[index][name][place] = before
        assert gradient[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)
    frozen = [p for p in objective.net.parameters() if not p.requires_grad]
    assert frozen
    assert all(parameter.grad is None for parameter in frozen)


def test_the_graph_follows_from_the_plan() -> None:
    """Another number of modules on the command line."""
    found = runs("incubate_vit_base", **{"incubate.divide": [6, 6], "incubate.meta": [1, 2]})
    assert list(found) == [
        "meta", "module_0", "module_1", "assemble", "finetune", "finetune_high",
    ]  # fmt: skip
    assert found["meta"].network.depths == (3,)
    assert [found[f"module_{i}"].network.depths for i in (0, 1)] == [(8,), (7,)]
    found = runs("incubate_vit_base", **{"incubate.weights": "published.pth"})
    assert "meta" not in found
    objective = found["module_1"].objective
    assert isinstance(objective, Incubate)
    assert objective.meta == Path("published.pth")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"divide": [3, 3, 3]}, r"incubate.meta: \[1,1,1,1\] has other modules than"),
        ({"divide": [3, 3, 3, 4]}, r"incubate.divide: \[3,3,3,4\] are 13 blocks in 4 modules, and"),
        ({"divide": [3, 3, 3, 0]}, r"incubate.divide.*should be at least 1"),
        ({"divde": 3}, r"incubate.divde: unknown key; did you mean 'divide'"),
    ],
)
def test_plans_that_do_not_fit_are_refused_before_anything_runs(
    keys: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        runs("incubate_vit_base", **{f"incubate.{key}": value for key, value in keys.items()})
