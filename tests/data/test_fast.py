from __future__ import annotations

import io
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from finished import trained
from graftwerk.data.config import Augment, Folder
from graftwerk.data.loader import seed_generators
from graftwerk.data.pack import Recode, recoded
from graftwerk.data.transforms import train_transform
from graftwerk.errors import ConfigError, DataError

DATA = Folder.model_validate({"path": "."})


def photograph(
    rng: np.random.Generator,
    height: int,
    width: int,
    mode: str = "RGB",
    smooth: int = 12,
    subsampling: str = "4:4:4",
) -> bytes:
    """A JPEG file of noise enlarged `smooth` times."""
    noise = rng.integers(0, 256, (height // smooth + 2, width // smooth + 2, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "JPEG", quality=92, subsampling=subsampling)
    return buffer.getvalue()


def transformed(raw: bytes, key: int, decode: str, **keys: object) -> Tensor:
    augment = Augment.model_validate({"size": 64, "decode": decode, **keys})
    seed_generators(key)
    return trained(augment, DATA)(raw)


def psnr(one: Tensor, other: Tensor) -> float:
    """In dB, of 8-bit pixels."""
    scale = np.array(DATA.std).reshape(3, 1, 1) * 255
    error = float((((one - other).numpy() * scale) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "random"])
def test_fast_and_exact_take_the_same_crop(rng: np.random.Generator, interpolation: str):
    for key in range(6):
        raw = photograph(rng, int(rng.integers(60, 120)), int(rng.integers(60, 120)))
        fast, exact = (
            transformed(raw, key, decode, interpolation=interpolation)
            for decode in ("fast", "exact")
        )
        assert psnr(fast, exact) > 45
        drawn = random.random()
        transformed(raw, key, "exact", interpolation=interpolation)
        assert random.random() == drawn  # the same number of random numbers went into it


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [40, 90])
def test_resizing_is_that_of_interpolate(rng: np.random.Generator, mode: str, side: int):
    pixels_hwc = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels_hwc).save(buffer, "PPM")
    augment = {"size": 64, "interpolation": mode, "scale": (1, 1), "ratio": (1, 1), "hflip": 1}
    transform = train_transform(Augment.model_validate({**augment, "decode": "fast"}), DATA)
    image_nchw = torch.from_numpy(pixels_hwc).flip(1)[None].permute(0, 3, 1, 2)
    whole = F.interpolate(image_nchw, (64, 64), mode=mode, antialias=True)[0]
    assert torch.equal(transform(buffer.getvalue()).image_chw, whole)


def test_chroma_of_half_the_resolution_is_not_smoothed(rng: np.random.Generator):
    for key in range(4):
        raw = photograph(rng, 150, 200, smooth=24, subsampling="4:2:0")
        fast, exact = (transformed(raw, key, decode) for decode in ("fast", "exact"))
        assert 35 < psnr(fast, exact) < 60


def test_where_decoding_shrinks_the_crop_stays_the_same_region(rng: np.random.Generator):
    for key in range(4):
        raw = photograph(rng, 700, 900, smooth=60)
        fast, exact = (transformed(raw, key, d, scale=(0.5, 1.0)) for d in ("fast", "exact"))
        assert psnr(fast, exact) > 24  # two pixels aside: at most 19


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_jpegs_go_through_pillow(rng: np.random.Generator, mode: str):
    raw = photograph(rng, 90, 80, mode)
    assert (transformed(raw, 3, "fast") == transformed(raw, 3, "exact")).all()


def test_other_files_go_through_pillow(rng: np.random.Generator):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (90, 80, 3), dtype=np.uint8)).save(buffer, "PNG")
    raw = buffer.getvalue()
    assert (transformed(raw, 3, "fast") == transformed(raw, 3, "exact")).all()


def test_stored_pixels_take_the_same_crop(rng: np.random.Generator):
    image = Image.open(io.BytesIO(photograph(rng, 90, 80)))
    buffer = io.BytesIO()
    image.save(buffer, "PPM")
    for key in range(6):
        fast, exact = (transformed(buffer.getvalue(), key, decode) for decode in ("fast", "exact"))
        assert psnr(fast, exact) > 45
    with pytest.raises(DataError, match="is no readable image"):
        transformed(buffer.getvalue()[:-9], 3, "fast")


def test_a_policy_follows_a_fast_crop(rng: np.random.Generator):
    raw = photograph(rng, 90, 80)
    keys: dict[str, object] = {"policy": "rand-m9-n1-mstd0.5-inc1", "erase": 0.5}
    for key in range(4):
        fast, exact = (transformed(raw, key, decode, **keys) for decode in ("fast", "exact"))
        assert psnr(fast, exact) > 20


def test_a_damaged_file_is_refused_like_by_pillow(rng: np.random.Generator):
    raw = photograph(rng, 90, 80)
    with pytest.raises(DataError, match="is no readable image"):
        transformed(raw[: len(raw) // 2], 3, "fast")


def test_random_damage_is_refused_or_decoded_but_never_anything_else(rng: np.random.Generator):
    whole, _ = recoded(photograph(rng, 320, 330), Recode(encode="jpeg"))
    transform = train_transform(Augment(size=24, decode="fast"), DATA)
    refused = 0
    for key in range(150):
        raw = bytearray(whole)
        for place in rng.integers(0, (700, len(raw))[key % 2], 2):
            raw[place] = rng.integers(256)
        seed_generators(key)
        try:
            assert transform(bytes(raw)).image_chw.shape == (3, 24, 24)
        except DataError:
            refused += 1
    assert 0 < refused < 150


def test_only_random_resized_crops_are_decoded_fast():
    with pytest.raises(ConfigError, match="'fast' decodes for random_resized"):
        train_transform(Augment(crop="pad", decode="fast"), DATA)
