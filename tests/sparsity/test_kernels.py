"""Products with sparse matrices against those with dense ones."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from graftwerk.sparsity.kernels import bsr_linear, csr_linear, pattern, semi_structured_linear


@pytest.fixture
def seed() -> int:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return seed


def _random_mask(rows: int, cols: int) -> Tensor:
    mask = torch.rand(rows, cols) < 0.3
    mask[2] = False  # an output without inputs, and an input that nobody reads
    mask[:, 3] = False
    return mask


def test_csr_products_against_the_dense_ones(seed: int) -> None:
    torch.manual_seed(seed)
    mask = _random_mask(12, 20)
    weight = (torch.randn(12, 20).double() * mask).requires_grad_()
    values = weight.detach()[mask].requires_grad_()
    x = torch.randn(7, 20).double().requires_grad_()
    bias, grad = torch.randn(12).double(), torch.randn(7, 12).double()
    expected = torch.autograd.grad(x @ weight.T + bias, (x, weight), grad)
    y = csr_linear(x, values, bias, pattern(mask))
    torch.testing.assert_close(y, x @ weight.T + bias)
    got = torch.autograd.grad(y, (x, values), grad)
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1][mask])


def test_bsr_products_against_the_dense_ones(seed: int) -> None:
    torch.manual_seed(seed)
    blocks = _random_mask(4, 6)
    mask = blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)
    weight = (torch.randn(16, 24).double() * mask).requires_grad_()

    def cut(matrix: Tensor) -> Tensor:
        return matrix.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).transpose(1, 2)[blocks]

    values = cut(weight.detach()).clone().requires_grad_()
    x = torch.randn(7, 24).double().requires_grad_()
    grad = torch.randn(7, 16).double()
    expected = torch.autograd.grad(x @ weight.T, (x, weight), grad)
    y = bsr_linear(x, values, None, pattern(blocks))
    torch.testing.assert_close(y, x @ weight.T)
    got = torch.autograd.grad(y, (x, values), grad)
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1], cut(expected[1]))


def test_sparse_products_have_the_same_bits_wherever_their_memory_lies(seed: int) -> None:
    torch.manual_seed(seed)
    mask, x, grad = _random_mask(30, 50), torch.randn(33, 50), torch.randn(33, 30)
    weights, places = torch.randn(int(mask.sum())), pattern(mask)
    first: list[Tensor] = []
    for repeat in range(100):
        elsewhere = [torch.empty(7 * repeat + i) for i in range(3)]
        values, inputs = weights.clone().requires_grad_(), x.clone().requires_grad_()
        y = csr_linear(inputs, values, None, places)
        got = [y.detach(), *torch.autograd.grad(y, (inputs, values), grad)]
        first = first or got
        assert all(torch.equal(one, other) for one, other in zip(first, got, strict=True))
        del elsewhere


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_semi_structured_products_against_the_dense_ones(seed: int) -> None:
    torch.manual_seed(seed)
    mask = torch.rand(128, 64, 4).argsort(-1).lt(2).flatten(1)
    weight = (torch.randn(128, 256) * mask).cuda().requires_grad_()
    x, grad = torch.randn(40, 256).cuda().requires_grad_(), torch.randn(40, 128).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        expected, got = x @ weight.T, semi_structured_linear(x, weight, None)
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)
    for one, other in zip(
        torch.autograd.grad(got, (x, weight), grad.to(got.dtype)),
        torch.autograd.grad(expected, (x, weight), grad.to(expected.dtype)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.05)
