"""Linear layers on sparse matrices: products with what exists, by torch's sparse formats.

W is [out, in]; activations are turned so that features come first, which the products of torch's
sparse formats like better. A backward pass costs W'·g and the sampled products g xᵀ at the weights
that exist.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Pattern(NamedTuple):
    """Places of the n active weights of a matrix, in rows (`crow`, `col`) and of its transpose."""

    shape: tuple[int, int]
    crow: Tensor
    col: Tensor
    crow_t: Tensor
    col_t: Tensor
    order_t: Tensor
    """Positions [n] of the transpose's values among those of the matrix."""


def pattern(mask: Tensor) -> Pattern:
    """Of a mask [out, in] of weights, or of blocks."""
    rows, cols = mask.nonzero(as_tuple=True)
    order_t = (cols * mask.shape[0] + rows).argsort()
    return Pattern(
        (mask.shape[0], mask.shape[1]),
        _starts(rows, mask.shape[0]),
        cols.int(),
        _starts(cols, mask.shape[1]),
        rows[order_t].int(),
        order_t.int(),
    )


def _starts(sorted_of: Tensor, count: int) -> Tensor:
    ends = torch.bincount(sorted_of, minlength=count).cumsum(0)
    return torch.cat([ends.new_zeros(1), ends]).int()


def csr_linear(x_ni: Tensor, values: Tensor, bias: Tensor | None, places: Pattern) -> Tensor:
    """``x Wᵀ + b`` with the values [n] of W in the order of rows. [batch, out]"""
    with torch.autocast(x_ni.device.type, enabled=False):
        y_no = _CsrLinear.apply(x_ni.to(values.dtype), values, places)
        return y_no if bias is None else y_no + bias


def bsr_linear(x_ni: Tensor, blocks: Tensor, bias: Tensor | None, places: Pattern) -> Tensor:
    """``x Wᵀ + b`` with the blocks [n, side, side] of W in the order of rows. [batch, out]"""
    with torch.autocast(x_ni.device.type, enabled=False):
        y_no = _BsrLinear.apply(x_ni.to(blocks.dtype), blocks, places)
        return y_no if bias is None else y_no + bias


def semi_structured_linear(x_ni: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + b`` in half precision, with W 2:4 sparse; its gradient is that of all weights.

    Sparse tensor cores multiply the forward pass alone: Wᵀ has no such pattern.
    """
    dtype = torch.get_autocast_dtype(x_ni.device.type)
    with torch.autocast(x_ni.device.type, enabled=False):
        y_no = _SemiStructuredLinear.apply(x_ni.to(dtype), weight.to(dtype))
        return y_no if bias is None else y_no + bias.to(dtype)


class _SemiStructuredLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ni: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x_ni, weight)
        return F.linear(x_ni, torch.sparse.to_sparse_semi_structured(weight.contiguous()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x_ni, weight = ctx.saved_tensors
        return grads[0] @ weight, grads[0].t() @ x_ni


class _CsrLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ni: Tensor, values: Tensor, places: Pattern) -> Tensor:
        ctx.places = places
        ctx.save_for_backward(x_ni, values)
        return (_csr(places.crow, places.col, values, places.shape) @ x_ni.t().contiguous()).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        places: Pattern = ctx.places
        x_ni, values = ctx.saved_tensors
        grad_on = grads[0].t().contiguous()
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            out, inputs = places.shape
            transposed = values.index_select(0, places.order_t)
            w_io = _csr(places.crow_t, places.col_t, transposed, (inputs, out))
            grad_x = (w_io @ grad_on).t()
        if ctx.needs_input_grad[1]:
            nothing = _csr(places.crow, places.col, torch.zeros_like(values), places.shape)
            sampled = torch.sparse.sampled_addmm(nothing, grad_on, x_ni, beta=0.0)
            grad_values = sampled.values()
        return grad_x, grad_values, None


class _BsrLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ni: Tensor, blocks: Tensor, places: Pattern) -> Tensor:
        ctx.places = places
        ctx.save_for_backward(x_ni, blocks)
        return (_bsr(places.crow, places.col, blocks, places.shape) @ x_ni.t().contiguous()).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        places: Pattern = ctx.places
        x_ni, blocks = ctx.saved_tensors
        side, grad_on = blocks.shape[-1], grads[0].t().contiguous()
        grad_x = grad_blocks = None
        if ctx.needs_input_grad[0]:
            rows, cols = places.shape
            transposed = blocks.index_select(0, places.order_t).transpose(1, 2).contiguous()
            w_io = _bsr(places.crow_t, places.col_t, transposed, (cols, rows))
            grad_x = (w_io @ grad_on).t()
        if ctx.needs_input_grad[1]:
            grad_rbn = grad_on.unflatten(0, (-1, side))
            x_cbn = x_ni.t().contiguous().unflatten(0, (-1, side))
            row = torch.repeat_interleave(places.crow.diff())
            grad_blocks = grad_rbn[row] @ x_cbn[places.col].transpose(1, 2)
        return grad_x, grad_blocks, None


def _csr(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


def _bsr(crow: Tensor, col: Tensor, blocks: Tensor, shape: tuple[int, int]) -> Tensor:
    """`shape` counts blocks."""
    side = blocks.shape[-1]
    size = (shape[0] * side, shape[1] * side)
    return torch.sparse_bsr_tensor(crow, col, blocks, size, check_invariants=False)


warnings.filterwarnings("ignore", message="Sparse (CSR|BSR) tensor support is in beta")
