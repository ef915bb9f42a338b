"""What travels in an exchange, and what both ends make of it.

Mixing moves along the differences of *what was said*, ``x_i ← x_i + Σ_j w_ij (s_j − s_i)``. With
``s = x`` that is ``W x``. With a rounded s the mean of all x is kept nevertheless, since what one
end gains the other one loses.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from graftwerk.elastic.mesh import as_bytes

BLOCK = 1024
"""Elements that share a scale in int8."""
BLOCKS = 256
"""Blocks that a processor rounds at once: they stay in its cache."""


class Payload(Protocol):
    """Of one edge. Pieces are flat tensors [n] of parameters, with a number each."""

    def encode(self, number: int, piece: Tensor) -> Tensor:
        """The bytes to send, on the CPU. The piece is the payload's until its next one comes."""
        ...

    def difference(self, number: int, received: Tensor) -> Tensor:
        """s_j − s_i of a piece; may use the memory of `received`. Changes nothing before `commit`.

        Not to be changed by the caller, and valid until the next one of this number is asked for.
        """
        ...

    def commit(self) -> None:
        """The exchange has happened, at both ends."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Plain:
    """Parameters as they are, or rounded to bf16."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype
        self._said: dict[int, tuple[Tensor, Tensor]] = {}
        """By number: what was said, and the piece that it was said of."""

    def encode(self, number: int, piece: Tensor) -> Tensor:
        said = piece.to(self._dtype or piece.dtype)
        self._said[number] = said, piece
        return to_host(said)

    def difference(self, number: int, received: Tensor) -> Tensor:
        said, piece = self._said[number]
        heard = from_host(received, said)
        if said is not piece:  # rounded: fresh memory would cost more than the arithmetic
            heard = piece.copy_(heard)
        return heard.sub_(said)

    def commit(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state


class Differences:
    """int8: each end keeps what it has said, and says the difference to it in 8 bits.

    That is CHOCO's compression with its memory (Koloskova et al., ICML 2019, algorithm 1), for
    each edge on its own: what rounding left out of one message is part of the next difference.
    The first message is the parameters themselves. Memory: three copies of them per edge.
    """

    def __init__(self) -> None:
        self._said: dict[int, Tensor] = {}
        """s_i as the other end knows it."""
        self._gaps: dict[int, Tensor] = {}
        """s_j − s_i."""
        self._sent: dict[int, Tensor] = {}
        self._next: dict[int, Tensor] = {}
        """The gaps after this exchange."""

    def encode(self, number: int, piece: Tensor) -> Tensor:
        said = self._said.get(number)
        sent = self._sent[number] = piece.clone() if said is None else quantized(piece, said)
        return to_host(sent)

    def difference(self, number: int, received: Tensor) -> Tensor:
        sent = self._sent[number]
        heard = from_host(received, sent)
        if number in self._gaps:
            gap = self._gaps[number]
            to = self._next.setdefault(number, torch.empty_like(gap))
            return new_gap(gap, heard, sent, out=to)
        self._next[number] = heard - sent
        return self._next[number]

    def commit(self) -> None:
        for number, sent in self._sent.items():
            if number in self._said:
                add_quantized_(self._said[number], sent)
            else:
                self._said[number] = sent
        self._gaps, self._next = self._next, self._gaps

    def state_dict(self) -> dict[str, Any]:
        return {"said": dict(self._said), "gaps": dict(self._gaps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._said, self._gaps = dict(state["said"]), dict(state["gaps"])


def quantized(values: Tensor, known: Tensor | None = None) -> Tensor:
    """[n] floats as bytes: per `BLOCK` the largest magnitude over 127 (fp32), then n × int8.

    What is `known` [n] already is taken off before.
    """
    size = 4 * -(-len(values) // BLOCK) + len(values)
    body = torch.empty(size, dtype=torch.uint8, device=values.device)
    for part, scales, integers in _pieces(body, len(values)):
        piece = values[part] if known is None else values[part] - known[part]
        rows = torch.nn.functional.pad(piece, (0, -len(piece) % BLOCK)).view(-1, BLOCK)
        scales.copy_(rows.abs().amax(1).div_(127))
        divisors = scales.to(values.dtype).clamp_min_(torch.finfo(torch.float32).tiny)
        steps = rows.div(divisors[:, None]).round_().clamp_(-127, 127)
        integers.copy_(steps.view(-1)[: len(piece)])
    return body


def add_quantized_(tensor: Tensor, body: Tensor) -> Tensor:
    """In place, `tensor` [n] plus what `quantized` rounded to `body`."""
    for part, *rounded in _pieces(body, len(tensor)):
        tensor[part] += _floats(rounded, tensor.dtype)
    return tensor


def new_gap(gap: Tensor, heard: Tensor, sent: Tensor, *, out: Tensor) -> Tensor:
    """``gap + (heard − sent)`` [n], the latter two as `quantized` rounded them.

    In this order, so that the gap at the other end is the negative of this one to the last bit.
    """
    n, dtype = len(gap), gap.dtype
    for (part, *ours), (_, *theirs) in zip(_pieces(sent, n), _pieces(heard, n), strict=True):
        difference = _floats(theirs, dtype).sub_(_floats(ours, dtype))
        torch.add(gap[part], difference, out=out[part])
    return out


def _floats(rounded: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Scales times integers, one scale for each `BLOCK`."""
    scales, floats = (tensor.to(dtype) for tensor in rounded)
    whole = len(floats) // BLOCK
    floats[: whole * BLOCK].view(whole, BLOCK).mul_(scales[:whole, None])
    floats[whole * BLOCK :].mul_(scales[whole:])
    return floats


def _pieces(body: Tensor, n: int) -> Generator[tuple[slice, Tensor, Tensor]]:
    """Parts of n elements, with their scales (fp32, one for each `BLOCK`) and int8 in `body`."""
    count = -(-n // BLOCK)
    scales, integers = body[: 4 * count].view(torch.float32), body[4 * count :].view(torch.int8)
    blocks = BLOCKS if body.device.type == "cpu" else max(1, count)
    for first in range(0, count, blocks):
        part = slice(first * BLOCK, (first + blocks) * BLOCK)
        yield part, scales[first : first + blocks], integers[part]


def to_host(tensor: Tensor) -> Tensor:
    """Its bytes on the CPU; from a GPU the copy is only under way."""
    if tensor.device.type == "cpu":
        return as_bytes(tensor)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return as_bytes(host.copy_(tensor, non_blocking=True))


def from_host(body: Tensor, like: Tensor) -> Tensor:
    """Bytes as a tensor of the type and on the device of `like`."""
    return body.view(like.dtype).to(like.device, non_blocking=True)
