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
    """Of one edge. Buckets are flat tensors [n] of parameters."""

    def encode(self, buckets: Sequence[Tensor]) -> list[Tensor]:
        """The bytes to send, on the CPU. Changes nothing."""
        ...

    def differences(self, received: Sequence[Tensor]) -> list[Tensor]:
        """s_j − s_i by bucket, once the exchange has happened; may use the memory of `received`."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Plain:
    """Parameters as they are, or rounded to bf16."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype
        self._said: list[Tensor] = []

    def encode(self, buckets: Sequence[Tensor]) -> list[Tensor]:
        self._kinds = [bucket.dtype for bucket in buckets]
        self._said = [bucket.to(self._dtype or bucket.dtype) for bucket in buckets]
        return [to_host(said) for said in self._said]

    def differences(self, received: Sequence[Tensor]) -> list[Tensor]:
        return [
            from_host(body, said).to(kind).sub_(said)
            for body, said, kind in zip(received, self._said, self._kinds, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state


class Differences:
    """int8: each end keeps what it has said, and says the difference to it in 8 bits.

    That is CHOCO's compression with its memory (Koloskova et al., ICML 2019, algorithm 1), for
    each edge on its own: what rounding left out of one message is part of the next difference.
    The first message is the parameters themselves. Memory: two copies of them per edge.
    """

    def __init__(self) -> None:
        self._said: list[Tensor] = []
        self._heard: list[Tensor] = []
        self._sent: list[Tensor] = []

    def encode(self, buckets: Sequence[Tensor]) -> list[Tensor]:
        if self._said:
            pairs = zip(buckets, self._said, strict=True)
            self._sent = [quantized(bucket, said) for bucket, said in pairs]
        else:
            self._sent = [bucket.clone() for bucket in buckets]
        return [to_host(sent) for sent in self._sent]

    def differences(self, received: Sequence[Tensor]) -> list[Tensor]:
        heard = [from_host(body, like) for body, like in zip(received, self._sent, strict=True)]
        if self._said:
            for memory, bodies in ((self._said, self._sent), (self._heard, heard)):
                for tensor, body in zip(memory, bodies, strict=True):
                    add_quantized_(tensor, body)
        else:
            self._said, self._heard = self._sent, [body.clone() for body in heard]
        return [heard - said for heard, said in zip(self._heard, self._said, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"said": self._said, "heard": self._heard}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._said, self._heard = list(state["said"]), list(state["heard"])


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
    for part, scales, integers in _pieces(body, len(tensor)):
        piece, scales, floats = tensor[part], scales.to(tensor.dtype), integers.to(tensor.dtype)
        whole = len(piece) // BLOCK
        rows, rest = (whole, BLOCK), whole * BLOCK
        piece[:rest].view(rows).addcmul_(floats[:rest].view(rows), scales[:whole, None])
        piece[rest:].addcmul_(floats[rest:], scales[whole:])
    return tensor


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
