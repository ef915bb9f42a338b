from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from graftwerk.precision import Precision

CPU = torch.device("cpu")
NAMES = ("fp32", "bf16", "fp16")
Name = Literal["fp32", "bf16", "fp16"]


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return net, torch.optim.SGD(net.parameters(), lr=0.1)


def images(number: int = 0) -> Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(number))


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def backward(net: nn.Module, precision: Precision, factor: float = 1.0) -> None:
    with precision.autocast():
        output = net(images())
    precision.backward(factor * output.float().square().mean())


@pytest.mark.parametrize("name", NAMES)
def test_autocast_computes_in_the_named_type(name: Name) -> None:
    net, _ = network()
    with Precision(name, CPU).autocast():
        output = net(images())
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    assert output.dtype == expected
    assert all(p.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_unscaled_gradients_are_those_of_the_loss(name: Name) -> None:
    """The scale is a power of two: it changes no digit of a gradient that is fp32 throughout."""
    net, optimizer = network()
    net(images()).square().mean().backward()
    expected = gradients(net)
    optimizer.zero_grad()
    precision = Precision(name, CPU)
    precision.backward(net(images()).square().mean())
    precision.unscale(optimizer)
    for found, reference in zip(gradients(net), expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_clipping_shrinks_true_gradients(name: Name, max_norm: float) -> None:
    net, optimizer = network()
    precision = Precision(name, CPU)
    backward(net, precision)
    precision.unscale(optimizer)
    before = torch.cat([g.flatten() for g in gradients(net)]).double()
    norm = precision.clip(net.parameters(), max_norm)
    after = torch.cat([g.flatten() for g in gradients(net)]).double()
    assert norm.item() == pytest.approx(before.norm().item(), rel=1e-5)
    expected = before * min(1.0, max_norm / before.norm().item())
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_clipped_step_agrees_in_all_precisions(name: Name) -> None:
    """To the eight bits that bf16 keeps."""
    net, optimizer = network()
    start = [p.detach().clone() for p in net.parameters()]
    (net(images()).square().mean()).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.05)
    optimizer.step()
    expected = [p.detach() - s for p, s in zip(net.parameters(), start, strict=True)]

    net, optimizer = network()
    precision = Precision(name, CPU)
    backward(net, precision)
    precision.unscale(optimizer)
    precision.clip(net.parameters(), 0.05)
    precision.step(optimizer, skipped=False)
    for parameter, before, move in zip(net.parameters(), start, expected, strict=True):
        torch.testing.assert_close(parameter.detach() - before, move, rtol=0, atol=1e-4)
        assert move.abs().max() > 3e-4


def test_overflow_skips_the_step_and_halves_the_scale() -> None:
    net, optimizer = network()
    precision = Precision("fp16", CPU)
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    scale = precision.state_dict()["scale"]
    backward(net, precision, factor=1e35)
    precision.unscale(optimizer)
    precision.clip(net.parameters(), 1.0)
    precision.step(optimizer, skipped=True)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, start[name])
    assert precision.state_dict()["scale"] == scale / 2
    optimizer.zero_grad()
    backward(net, precision)
    precision.unscale(optimizer)
    precision.step(optimizer, skipped=False)
    assert not torch.equal(net.state_dict()["0.weight"], start["0.weight"])


def test_fp16_keeps_gradients_that_are_too_small_for_it() -> None:
    """A tenth of fp16's smallest number would be 0 without the scale."""
    tiny = 6e-9
    for scaled, survives in ((True, True), (False, False)):
        weight = torch.ones(1, requires_grad=True)
        precision = Precision("fp16" if scaled else "fp32", CPU)
        with torch.autocast("cpu", torch.float16):
            output = nn.functional.linear(torch.ones(1, 1), weight[None])
        precision.backward(output.sum() * tiny)
        assert (weight.grad is not None and weight.grad.item() > 0) is survives


@pytest.mark.parametrize("name", NAMES)
def test_state_goes_through_a_file(name: Name, tmp_path: Path) -> None:
    net, optimizer = network()
    precision = Precision(name, CPU)
    backward(net, precision, factor=1e35 if name == "fp16" else 1.0)
    precision.unscale(optimizer)
    precision.step(optimizer, skipped=name == "fp16")
    torch.save(precision.state_dict(), tmp_path / "state.pt")
    other = Precision(name, CPU)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.state_dict() == precision.state_dict()
    if name == "fp16":
        assert other.state_dict() != Precision(name, CPU).state_dict()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2.5])
def test_a_loss_that_is_not_finite_makes_all_gradients_nan(value: float) -> None:
    net, _ = network()
    Precision("fp32", CPU).backward(net(images()).sum() * 0 + value, 0.5)
    assert all(bool(g.isnan().all()) is not math.isfinite(value) for g in gradients(net))
