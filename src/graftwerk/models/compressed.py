"""Weights with many zeros, stored by what is not zero: a lossless form for safetensors files.

A tensor ``NAME`` becomes ``NAME:values``, ``NAME:shape`` and one of

- ``NAME:gaps`` (bytes): how many zeros come before each value. More than 255 of them take a value
  of 0 on the way, as in Deep Compression (Han et al. 2016, section 2). 5 bytes a weight in fp32.
- ``NAME:bits``: a bit for each place, first place in the highest bit; 1 where there is a value.

whichever is the smaller; it stays what it was where neither is smaller than that. Signs of zeros
are lost, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]

FILE = "model.sparse.safetensors"
"""In an exported folder, in the place of ``model.safetensors``."""
VALUES, SHAPE, GAPS, BITS = ":values", ":shape", ":gaps", ":bits"


def compress(state: Mapping[str, Tensor]) -> State:
    """`state` with each tensor in its smallest form."""
    small: State = {}
    for name, tensor in state.items():
        small |= {name + suffix: part for suffix, part in _smallest(tensor).items()}
    return small


def expand(state: Mapping[str, Tensor]) -> State:
    """Undoes `compress`; what it has not touched stays as it is."""
    full: State = {}
    for key, tensor in state.items():
        name, mark, part = key.rpartition(":")
        if mark and f":{part}" == VALUES:
            full[name] = _expanded(state, name)
        elif not (mark and name + VALUES in state):
            full[key] = tensor
    return full


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of their numbers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _smallest(tensor: Tensor) -> State:
    if not tensor.is_floating_point() or tensor.ndim == 0:
        return {"": tensor}
    flat = tensor.detach().cpu().flatten()
    active = flat != 0
    shape = {SHAPE: torch.tensor(tensor.shape)}
    forms = [{"": tensor}, shape | _gaps(flat, active), shape | _bits(flat, active)]
    return min(forms, key=lambda form: size(form.values()))


def _gaps(flat: Tensor, active: Tensor) -> State:
    places = active.nonzero().squeeze(1)
    zeros = places.diff(prepend=places.new_tensor([-1])) - 1
    fillers, rest = zeros // 256, zeros % 256
    at = torch.arange(len(places)) + fillers.cumsum(0)
    count = len(places) + int(fillers.sum())
    gaps = torch.full((count,), 255, dtype=torch.uint8).index_copy_(0, at, rest.to(torch.uint8))
    values = torch.zeros(count, dtype=flat.dtype).index_copy_(0, at, flat[places])
    return {VALUES: values, GAPS: gaps}


def _bits(flat: Tensor, active: Tensor) -> State:
    return {VALUES: flat[active], BITS: torch.from_numpy(np.packbits(active.numpy()))}


def _expanded(state: Mapping[str, Tensor], name: str) -> Tensor:
    values, shape = state[name + VALUES], state[name + SHAPE].tolist()
    full = torch.zeros(int(np.prod(shape)), dtype=values.dtype)
    if name + GAPS in state:
        full.index_copy_(0, (state[name + GAPS].long() + 1).cumsum(0) - 1, values)
    else:
        bits = np.unpackbits(state[name + BITS].numpy(), count=len(full))
        full[torch.from_numpy(bits.view(bool))] = values
    return full.view(shape)
