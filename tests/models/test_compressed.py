"""The compact form of weights loads back to the same numbers, and is as small as it says."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from graftwerk.errors import CheckpointError
from graftwerk.models.compressed import compress, expand, size
from graftwerk.models.weights import read_state_dict


@pytest.fixture
def generator() -> torch.Generator:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def sparse(density: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    weight = torch.randn(shape, generator=generator)
    return weight * (torch.rand(shape, generator=generator) < density)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
        assert (tensor.dtype, tensor.shape) == (other[name].dtype, other[name].shape), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_numbers_come_back(dtype: torch.dtype, generator: torch.Generator) -> None:
    densities = (0.0, 0.0005, 0.01, 0.1, 0.3, 0.7, 1.0)
    state = {f"w{d:g}": sparse(d, (40, 30, 3, 3), generator).to(dtype) for d in densities}
    state |= {
        "count": torch.tensor(7),
        "empty": torch.zeros(0),
        "scale": torch.tensor(0.5, dtype=dtype),
        "colon:name": torch.ones(3),
        "a_far_one": torch.zeros(1000).index_fill_(0, torch.tensor([0, 256, 999]), 2.5).to(dtype),
    }
    assert_same(expand(compress(state)), state)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.5])
def test_the_size_follows_the_density(density: float, generator: torch.Generator) -> None:
    """5 bytes for a value and a filler, of which 256 zeros need one; or 4 and a bit a place."""
    weight = sparse(density, (500, 1000), generator)
    long = (1 - density) ** 256
    by_gaps, by_bits = 5 / (1 - long), 4 + 1 / (8 * density)
    stored = size(compress({"w": weight}).values())
    active = int(weight.count_nonzero())
    assert stored / active == pytest.approx(min(by_gaps, by_bits), rel=0.02)


def test_a_dense_tensor_is_left_alone(generator: torch.Generator) -> None:
    state = {"w": torch.randn(9, 9, generator=generator), "b": torch.zeros(())}
    assert compress(state).keys() == state.keys()


def test_channels_last_weights(generator: torch.Generator) -> None:
    weight = sparse(0.1, (8, 16, 3, 3), generator).to(memory_format=torch.channels_last)
    assert_same(expand(compress({"w": weight})), {"w": weight})


def test_a_damaged_file_is_named(tmp_path: Path, generator: torch.Generator) -> None:
    state = compress({"w": sparse(0.1, (50, 50), generator)})
    state["w:gaps"] = state["w:gaps"].fill_(255)
    safetensors.torch.save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"bad.safetensors: damaged"):
        read_state_dict(tmp_path / "bad.safetensors")
