"""SparK (Tian et al. 2023) against its mathematics, written out slowly, and its numbers."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from graftwerk.axes import Batch
from graftwerk.models.sparse.mask import random_mask
from graftwerk.objectives import config as objectives
from graftwerk.objectives.patches import fill_in, hidden_loss, patchify, unpatchify
from graftwerk.objectives.spark import Spark
from graftwerk.optim.groups import group_parameters
from graftwerk.optim.optimizers import apply_rates, build_optimizer
from graftwerk.optim.schedules import factor
from graftwerk.recipes import find, find_pipeline, shipped
from graftwerk.run import peak_lr

SEED = int(np.random.SeedSequence().generate_state(1)[0])
IMAGES, STEPS_PER_EPOCH, STEPS = 1281167, 313, 500800


@pytest.fixture(autouse=True)
def fresh_numbers() -> None:
    print(f"seed {SEED}")
    torch.manual_seed(SEED)


def objective(name: str, size: tuple[int, int] = (64, 64), channels: int = 3, **keys: Any) -> Spark:
    net = timm.create_model(name, num_classes=0, in_chans=channels)
    node = objectives.Spark(**keys)
    built = node.build(net, channels=channels, sizes={"augment.size": size})
    assert isinstance(built, Spark)
    return built


# ---------------------------------------------------------------- loss


def slow_loss(images: np.ndarray, rebuilt: np.ndarray, visible: np.ndarray) -> float:
    """Section 3.2, patch by patch."""
    n, _, h, w = images.shape
    _, rows, columns = visible.shape
    p, q = h // rows, w // columns
    costs: list[float] = []
    for i in range(n):
        for r in range(rows):
            for c in range(columns):
                if visible[i, r, c]:
                    continue
                part = np.s_[i, :, r * p : (r + 1) * p, c * q : (c + 1) * q]
                target = images[part].transpose(1, 2, 0).ravel()
                guess = rebuilt[part].transpose(1, 2, 0).ravel()
                target = (target - target.mean()) / math.sqrt(target.var(ddof=1) + 1e-6)
                costs.append(float(((guess - target) ** 2).mean()))
    return sum(costs) / (len(costs) + 1e-8)


@pytest.mark.parametrize(("channels", "rows", "columns", "patch"), [(3, 2, 3, 8), (1, 3, 2, 4)])
def test_loss(channels: int, rows: int, columns: int, patch: int) -> None:
    shape = (3, channels, rows * patch, columns * patch)
    images, rebuilt = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    visible = torch.rand(3, rows, columns) < 0.4
    found = hidden_loss(images, rebuilt, visible).item()
    expected = slow_loss(images.numpy(), rebuilt.numpy(), visible.numpy())
    assert found == pytest.approx(expected, rel=1e-12)


def test_patches_are_in_the_order_row_column_channel() -> None:
    images = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    assert patches[1, 4].tolist() == images[1, :, 2:4, 2:4].permute(1, 2, 0).flatten().tolist()
    assert torch.equal(unpatchify(patches, 2, (4, 6)), images)


def test_pictures_undo_the_normalisation_with_the_true_statistics() -> None:
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    visible = torch.tensor([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 0]]]).bool()
    patches = patchify(images, 4)
    mean, var = patches.mean(2, keepdim=True), patches.var(2, keepdim=True)
    perfect = unpatchify((patches - mean) / (var + 1e-6).sqrt(), 4, (8, 12))
    torch.testing.assert_close(fill_in(images, perfect, visible), images)
    shown = visible.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand_as(images)
    wrong = fill_in(images, perfect + 1, visible)
    assert torch.equal(wrong[shown], images[shown])
    assert (wrong != images)[~shown].all()


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize(
    ("size", "ratio", "visible", "hidden"),
    [
        (224, 0.6, 20, 29),
        (384, 0.75, 36, 108),
        (192, 0.6, 14, 22),
        (128, 0.6, 6, 10),
        (96, 0.6, 4, 5),
        (64, 0.6, 2, 2),
    ],
)
def test_counts(size: int, ratio: float, visible: int, hidden: int) -> None:
    mask = random_mask(3, size // 32, size // 32, ratio)
    assert mask.sum((1, 2)).tolist() == [visible] * 3
    assert (~mask).sum((1, 2)).tolist() == [hidden] * 3


def test_published_draw() -> None:
    torch.manual_seed(0)
    (shown,) = random_mask(2, 7, 7, 0.6)[0].flatten().nonzero(as_tuple=True)
    expected = [2, 3, 12, 13, 14, 18, 19, 27, 28, 30, 32, 33, 34, 35, 36, 41, 43, 44, 45, 48]
    assert shown.tolist() == expected


# ---------------------------------------------------------------- parameters


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def resnet50() -> Spark:
    return objective("resnet50", (224, 224))


def test_parameters_of_resnet50(resnet50: Spark) -> None:
    densify = resnet50.densify
    assert count(resnet50.net) == 23_508_032
    assert count(densify.norms) == 7_680
    assert count(densify.projs) == 6_219_168
    assert count(densify.mask_tokens) == 3_840
    assert count(resnet50.decoder) == 23_183_115
    assert count(resnet50) == 52_921_835
    dead = 3  # imn_m, imn_s, norm_black
    assert len(resnet50.state_dict()) == 425 - dead
    assert len(resnet50.net.state_dict()) == 318


def test_decayed_tensors_of_resnet50(resnet50: Spark) -> None:
    groups = group_parameters(resnet50, find("spark_resnet50").optim)
    counts = dict.fromkeys((True, False), 0)
    for group in groups:
        counts[group["decays"]] += len(group["params"])
    assert counts == {True: 73, False: 148}


def test_parameters_of_convnext_small() -> None:
    small = objective("convnext_small", (224, 224))
    assert count(small.net) == 49_453_152
    assert count(small) == 74_383_083
    assert isinstance(small.densify.projs[0], nn.Identity)


# ---------------------------------------------------------------- rates and optimizer


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 1.6e-5),
        (313, 9.56e-5),
        (6260, 0.001608),
        (12520, 0.0032),
        (250400, 0.001665956073),
        (500799, 3.2e-6),
    ],
)
def test_learning_rate_of_the_recipe(step: int, lr: float) -> None:
    run = find("spark_resnet50")
    found = peak_lr(run) * factor(run.schedule, step, STEPS, STEPS_PER_EPOCH)
    assert found == pytest.approx(lr, rel=1e-9)


@pytest.mark.parametrize(("step", "decay"), [(12520, 0.04024661429), (250400, 0.1200002509)])
def test_weight_decay_of_the_recipe(step: int, decay: float) -> None:
    run = find("spark_resnet50")
    found = run.optim.weight_decay * factor(run.decay_schedule, step, STEPS, STEPS_PER_EPOCH)
    assert found == pytest.approx(decay, rel=1e-9)


class Two(nn.Module):
    """One tensor that is decayed and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 3, dtype=torch.float64)

    def no_weight_decay(self) -> set[str]:
        return set()


def lamb_step(
    x: np.ndarray, state: list[np.ndarray], g: np.ndarray, t: int, lr: float, decay: float
) -> np.ndarray:
    """Published LAMB: moments corrected, eps outside the root, ratio only where decayed."""
    b1, b2 = 0.9, 0.95
    state[0] = b1 * state[0] + (1 - b1) * g
    state[1] = b2 * state[1] + (1 - b2) * g * g
    u = (state[0] / (1 - b1**t)) / (np.sqrt(state[1] / (1 - b2**t)) + 1e-6) + decay * x
    if decay:
        u = u * np.linalg.norm(x) / np.linalg.norm(u)
    return x - lr * u


@pytest.mark.parametrize("scale", [0.1, 100.0])
def test_lamb_of_the_recipe(scale: float) -> None:
    """Gradients below and far above the norm of 5, to which all of them are clipped together."""
    module: Any = Two()
    optimizer = build_optimizer(module, find("spark_resnet50").optim, lr=0.1)
    xs = [p.detach().numpy().copy() for p in module.parameters()]
    states = [[np.zeros_like(x), np.zeros_like(x)] for x in xs]
    for t in range(1, 5):
        lr, decay = 0.1 / t, 0.04 * t
        grads = [scale * torch.randn_like(p) for p in module.parameters()]
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        for parameter, grad in zip(module.parameters(), grads, strict=True):
            parameter.grad = grad.clone()
        apply_rates(optimizer, lr, decay)
        optimizer.step()
        clipped = [g.numpy() / max(1.0, norm / 5) for g in grads]
        decays = [decay if x.ndim > 1 else 0.0 for x in xs]
        xs = [
            lamb_step(x, state, g, t, lr, wd)
            for x, state, g, wd in zip(xs, states, clipped, decays, strict=True)
        ]
        for parameter, x in zip(module.parameters(), xs, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), x, rtol=1e-10)


# ---------------------------------------------------------------- recipes


RECIPES = [name for name in shipped() if re.match(r"(spark|finetune)_(resnet|convnext)", name)]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_fit_their_model(name: str) -> None:
    run = next(iter(find_pipeline(name).runs.values()))
    with torch.device("meta"):
        net = timm.create_model(run.model.name, drop_path_rate=run.model.drop_path)
    assert run.augment.height_width[0] == (384 if name.endswith("384") else 224)
    if name.startswith("finetune"):
        wrapped: Any = nn.Module()
        wrapped.net, wrapped.no_weight_decay = net, set
        scales = {group["lr_scale"] for group in group_parameters(wrapped, run.optim)}
        assert max(scales) == 1
        lasts = {"resnet50": 7, "resnet101": 13, "resnet152": 14, "resnet200": 18}
        assert min(scales) == pytest.approx(run.optim.layer_decay ** lasts.get(run.model.name, 13))


def test_an_epoch_of_imagenet() -> None:
    run = find("spark_resnet50")
    assert run.data.last == "wrap"
    assert -(-IMAGES // run.batch.size) == STEPS_PER_EPOCH


# ---------------------------------------------------------------- the whole objective


def slow_forward(model: Spark, images: Tensor, visible: Tensor) -> Tensor:
    """Densify and decode as the paper writes it, on dense canvases."""
    from graftwerk.models.sparse.mask import Mask

    mask = Mask(visible)
    features = model.encoder(model.net, images, mask)
    z: Any = 0
    for i, cells in enumerate(reversed(features)):
        size = cells.shape[-1]
        canvas = mask.unpack(model.densify.norms[i](cells))
        shown = visible.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, None]
        filled = torch.where(shown, canvas, model.densify.mask_tokens[i])
        z = z + model.densify.projs[i](filled)
        z = model.decoder.dec[i](z)
    for block in list(model.decoder.dec)[len(features) :]:
        z = block(z)
    return model.decoder.proj(z)


def test_objective_is_the_loss_of_what_the_decoder_makes() -> None:
    model = objective("resnet18", (64, 96), width=32).double()
    images = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    torch.manual_seed(SEED)
    loss = model(Batch(images, torch.zeros(3), torch.arange(3))).loss.item()
    torch.manual_seed(SEED)
    visible = random_mask(3, 2, 3, 0.6)
    with torch.no_grad():
        rebuilt = slow_forward(model, images, visible)
    assert loss == pytest.approx(slow_loss(images.numpy(), rebuilt.numpy(), visible.numpy()))
