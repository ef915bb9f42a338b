from __future__ import annotations

import os
import random
import tarfile
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from graftwerk.data.decode import decode
from graftwerk.errors import DataError


def encode(image: Image.Image, form: str = "png", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def random_rgb(rng: np.random.Generator, height: int = 9, width: int = 14) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601-2, as Pillow documents for its mode L."""
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize("form", ["png", "bmp", "tiff", "ppm", "webp"])
def test_rgb_keeps_its_pixels(rng: np.random.Generator, form: str):
    pixels = random_rgb(rng)
    raw = encode(Image.fromarray(pixels), form, **({"lossless": True} if form == "webp" else {}))
    np.testing.assert_array_equal(decode(raw, "rgb"), pixels)
    np.testing.assert_allclose(np.asarray(decode(raw, "grey")), luma(pixels), atol=1)


def test_jpeg_is_decoded_as_pillow_does(rng: np.random.Generator):
    raw = encode(Image.fromarray(random_rgb(rng)), "jpeg")
    np.testing.assert_array_equal(decode(raw, "rgb"), np.asarray(Image.open(BytesIO(raw))))


@pytest.mark.parametrize("form", ["png", "jpeg", "tiff"])
def test_grey_becomes_three_equal_channels(rng: np.random.Generator, form: str):
    raw = encode(Image.fromarray(random_rgb(rng)[:, :, 0]), form)
    grey = np.asarray(decode(raw, "grey"))
    rgb = np.asarray(decode(raw, "rgb"))
    assert grey.shape == (9, 14)
    np.testing.assert_array_equal(rgb, np.repeat(grey[:, :, None], 3, axis=2))


def test_transparency_is_dropped(rng: np.random.Generator):
    pixels = random_rgb(rng)
    alpha = rng.integers(0, 256, (9, 14, 1), dtype=np.uint8)
    rgba = encode(Image.fromarray(np.concatenate([pixels, alpha], axis=2)))
    la = encode(Image.fromarray(np.concatenate([pixels[:, :, :1], alpha], axis=2)))
    np.testing.assert_array_equal(decode(rgba, "rgb"), pixels)
    np.testing.assert_array_equal(decode(la, "grey"), pixels[:, :, 0])


@pytest.mark.parametrize(
    "transparency", [None, 3, bytes(range(16))], ids=["opaque", "one colour", "alpha per colour"]
)
def test_palette_gives_its_colours_without_a_warning(
    rng: np.random.Generator, transparency: int | bytes | None
):
    colours = rng.integers(0, 256, (16, 3), dtype=np.uint8)
    numbers = rng.integers(0, 16, (9, 14), dtype=np.uint8)
    image = Image.fromarray(numbers)
    image.putpalette(colours.tobytes())
    assert image.mode == "P"
    options = {} if transparency is None else {"transparency": transparency}
    raw = encode(image, "png", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode(raw, "rgb"), colours[numbers])
        np.testing.assert_allclose(np.asarray(decode(raw, "grey")), luma(colours[numbers]), atol=1)


def test_cmyk_jpeg_shows_its_colours():
    """Flat colours survive JPEG and the conversion; Adobe stores CMYK inverted."""
    for colour in [(255, 0, 0), (0, 255, 0), (20, 40, 230), (255, 255, 255), (0, 0, 0)]:
        flat = Image.new("RGB", (16, 16), colour).convert("CMYK")
        raw = encode(flat, "jpeg", quality=95)
        assert Image.open(BytesIO(raw)).mode == "CMYK"
        np.testing.assert_allclose(
            np.asarray(decode(raw, "rgb")).reshape(-1, 3), [colour] * 256, atol=6
        )


@pytest.mark.parametrize("form", ["png", "tiff", "ppm"])
@pytest.mark.parametrize("mode", ["rgb", "grey"])
def test_16_bit_is_scaled_and_not_clipped(
    rng: np.random.Generator, form: str, mode: Literal["rgb", "grey"]
):
    values = rng.integers(0, 65536, (9, 14), dtype=np.uint16)
    values[0, :3] = 0, 255, 65535
    decoded = np.asarray(decode(encode(Image.fromarray(values), form), mode))
    expected = np.floor(values.astype(np.float64) / 65535 * 255 + 0.5)
    np.testing.assert_array_equal(decoded[..., 0] if mode == "rgb" else decoded, expected)


def test_mode_i_with_16_bit_values_is_scaled(rng: np.random.Generator):
    values = rng.integers(0, 65536, (5, 5), dtype=np.int32)
    decoded = np.asarray(decode(Image.fromarray(values), "grey"))
    np.testing.assert_allclose(decoded, values / 257, atol=0.5)


@pytest.mark.parametrize(
    "values",
    [np.array([[70000]], np.int32), np.array([[-1]], np.int32), np.ones((1, 1), np.float32)],
)
def test_pixels_of_unknown_range_are_refused(values: np.ndarray):
    raw = encode(Image.fromarray(values), "tiff")
    with pytest.raises(DataError, match="whose range nobody can know; store it with 8 or 16 bits"):
        decode(raw, "rgb")


def test_one_bit_is_black_and_white(rng: np.random.Generator):
    bits = rng.integers(0, 2, (9, 14)).astype(bool)
    raw = encode(Image.fromarray(bits))
    assert Image.open(BytesIO(raw)).mode == "1"
    np.testing.assert_array_equal(decode(raw, "grey"), bits * 255)
    np.testing.assert_array_equal(np.asarray(decode(raw, "rgb"))[:, :, 1], bits * 255)


def test_one_pixel(rng: np.random.Generator):
    pixels = random_rgb(rng, 1, 1)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(pixels)), "rgb"), pixels)


def test_an_image_in_memory_passes_as_it_is(rng: np.random.Generator):
    image = Image.fromarray(random_rgb(rng))
    assert decode(image, "rgb") is image
    assert decode(image, "grey").mode == "L"


@pytest.mark.parametrize("form", ["png", "jpeg", "bmp", "tiff", "webp"])
def test_a_truncated_file_is_refused_with_a_reason(rng: np.random.Generator, form: str):
    raw = encode(Image.fromarray(random_rgb(rng, 64, 64)), form)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(DataError, match="is no readable image"):
            decode(raw[: int(len(raw) * share)], "rgb")


def test_an_empty_file_is_called_so():
    with pytest.raises(DataError, match=r"is no readable image \(it is empty\)"):
        decode(b"", "rgb")


@pytest.mark.parametrize("raw", [b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_what_is_no_image_is_refused(raw: bytes):
    with pytest.raises(DataError, match=r"is no readable image \(no known image format\)"):
        decode(raw, "rgb")


def test_random_damage_is_refused_or_decoded_but_never_anything_else(rng: np.random.Generator):
    files = [
        encode(Image.fromarray(random_rgb(rng, 32, 32)), form)
        for form in ("png", "jpeg", "bmp", "tiff", "webp")
    ]
    refused = 0
    for _ in range(300):
        raw = bytearray(files[rng.integers(len(files))])
        for place in rng.integers(0, len(raw), 8):
            raw[place] = rng.integers(256)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert decode(bytes(raw), "rgb").mode == "RGB"
        except DataError:
            refused += 1
    assert refused > 30


@pytest.mark.skipif("GRAFTWERK_DATA" not in os.environ, reason="GRAFTWERK_DATA is not set")
def test_photographs_are_decoded_as_by_pillow():
    with tarfile.open(Path(os.environ["GRAFTWERK_DATA"]) / "imagenet-sample-600.tar") as tar:
        files = [tar.extractfile(member) for member in tar if member.isfile()]
        photographs = [file.read() for file in files if file is not None]
    assert len(photographs) == 600
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    for raw in random.Random(seed).sample(photographs, 200):
        expected = np.asarray(Image.open(BytesIO(raw)).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(decode(raw, "rgb")), expected)
