from __future__ import annotations

import io
import math
import random

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from torch import Tensor

from finished import trained
from graftwerk.data.config import Augment, Folder
from graftwerk.data.fast import Jpeg, stored_as
from graftwerk.data.loader import seed_generators
from graftwerk.data.transforms import train_transform
from graftwerk.errors import ConfigError, DataError

DATA = Folder.model_validate({"path": "."})


def photograph(
    rng: np.random.Generator, height: int, width: int, mode: str = "RGB", smooth: int = 12
) -> bytes:
    """A JPEG file of noise enlarged `smooth` times, as smooth as real images are."""
    noise = rng.integers(0, 256, (height // smooth + 2, width // smooth + 2, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "JPEG", quality=92)
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


def test_where_decoding_shrinks_the_crop_stays_the_same_region(rng: np.random.Generator):
    for key in range(4):
        raw = photograph(rng, 700, 900, smooth=60)
        fast, exact = (transformed(raw, key, d, scale=(0.5, 1.0)) for d in ("fast", "exact"))
        assert psnr(fast, exact) > 24  # two pixels aside: at most 19


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_rows_below_the_crop_change_nothing(
    rng: np.random.Generator, subsampling: str, progressive: bool, factor: int
):
    image, buffer = Image.open(io.BytesIO(photograph(rng, 301, 250))), io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
    stored = stored_as(buffer.getvalue())
    assert isinstance(stored, Jpeg)
    whole = simplejpeg.decode_jpeg(stored.raw, min_height=301 // factor, min_width=250 // factor)
    down, across = whole.shape[0] / 301, whole.shape[1] / 250
    for _ in range(30):
        top, height = sorted(rng.integers(0, 301, 2).tolist())
        box = top, 10, height - top + 1, 200
        part = stored.part(box, factor)
        rows = slice(round(top * down), max(round((height + 1) * down), round(top * down) + 1))
        columns = slice(round(10 * across), round(210 * across))
        np.testing.assert_array_equal(part, whole[rows, columns])


def test_damage_above_the_end_of_the_crop_is_noticed(rng: np.random.Generator):
    raw = bytearray(photograph(rng, 300, 250))
    stored = stored_as(bytes(raw))
    assert isinstance(stored, Jpeg)
    box = 0, 0, 150, 250
    stored.part(box, 1)
    raw[len(raw) // 4 : len(raw) // 4 + 60] = b"\xff\xd9" * 30
    with pytest.raises(ValueError, match="premature end of data segment"):
        Jpeg(bytes(raw), 300, 250).part(box, 1)
    with pytest.raises(ValueError, match="Premature end of JPEG file"):
        Jpeg(stored.raw[: len(raw) * 3 // 4], 300, 250).part(box, 1)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_jpegs_go_through_pillow(rng: np.random.Generator, mode: str):
    raw = photograph(rng, 90, 80, mode)
    assert (transformed(raw, 3, "fast") == transformed(raw, 3, "exact")).all()


def test_other_files_go_through_pillow(rng: np.random.Generator):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (90, 80, 3), dtype=np.uint8)).save(buffer, "PNG")
    raw = buffer.getvalue()
    assert (transformed(raw, 3, "fast") == transformed(raw, 3, "exact")).all()


def teststored_as_pixels_take_the_same_crop(rng: np.random.Generator):
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


def test_only_random_resized_crops_are_decoded_fast():
    with pytest.raises(ConfigError, match="'fast' decodes for random_resized"):
        train_transform(Augment(crop="pad", decode="fast"), DATA)
