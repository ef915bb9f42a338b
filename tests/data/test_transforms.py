from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import create_transform
from torch import Tensor

from finished import finished, trained
from graftwerk.data.config import Augment, Data, Digits, Folder
from graftwerk.data.loader import seed_generators
from graftwerk.data.transforms import RandomResizedCrop, eval_transform, train_transform
from graftwerk.errors import ConfigError, DataError

RGB = Folder.model_validate({"path": "."})
GREY = Digits()
PLAIN: dict[str, Any] = {"crop": "none", "hflip": 0.0}
POLICIES = [
    "trivial",
    "rand-m9-mstd0.5-inc1",
    "rand-m15-n3-p0.7-mmax20-tweights",
    "rand-m9-t3a",
    "original",
    "originalr-mstd0.5",
    "v0",
    "v0r",
    "3a",
    "augmix-m5-w4-d2",
    "augmix-b1-a0.5-mstd1",
]


def random_image(
    rng: np.random.Generator, height: int = 40, width: int = 50, *, mode: str = "RGB"
) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def timm_transform(*args: Any, **kwargs: Any) -> Callable[[Image.Image], Tensor]:
    return cast(Callable[[Image.Image], Tensor], create_transform(*args, **kwargs))


def unnormalised(tensor: Tensor, data: Data) -> np.ndarray:
    """[h, w, c] in 0…255."""
    values = tensor * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
    return (values * 255).permute(1, 2, 0).numpy()


def test_plain_training_is_the_normalised_image(rng: np.random.Generator):
    image = random_image(rng, 32, 32)
    tensor = trained(Augment(size=32, **PLAIN), RGB)(image)
    expected = (np.asarray(image) / 255 - RGB.mean) / RGB.std
    np.testing.assert_allclose(tensor.permute(1, 2, 0), expected, atol=1e-5)
    assert tensor.dtype == torch.float32


def test_encoded_bytes_and_their_image_give_the_same(rng: np.random.Generator):
    image = random_image(rng)
    buffer = BytesIO()
    image.save(buffer, "png")
    transform = trained(Augment(size=24, policy="rand-m9-mstd0.5-inc1", erase=0.5), RGB)
    tensors: list[Tensor] = []
    for raw in (image, buffer.getvalue()):
        seed_generators(7)
        tensors.append(transform(raw))
    assert torch.equal(*tensors)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "random"])
@pytest.mark.parametrize("policy", [None, "rand-m9-mstd0.5-inc1", "augmix-m3-w3"])
def test_random_resized_training_equals_timms(
    rng: np.random.Generator, policy: str | None, interpolation: Any
):
    if policy and interpolation == "lanczos":
        pytest.skip("timm's policies fail with Lanczos; ours use bicubic there")
    augment = Augment(
        size=(24, 32),
        scale=(0.3, 0.9),
        ratio=(0.5, 1.5),
        interpolation=interpolation,
        hflip=0.3,
        vflip=0.2,
        color_jitter=0.4,
        policy=policy,
        erase=0.7,
        erase_mode="rand",
        erase_count=3,
    )
    theirs = timm_transform(
        (24, 32),
        is_training=True,
        scale=(0.3, 0.9),
        ratio=(0.5, 1.5),
        interpolation=interpolation,
        hflip=0.3,
        vflip=0.2,
        color_jitter=0.4,
        auto_augment=policy,
        re_prob=0.7,
        re_mode="rand",
        re_count=3,
        mean=RGB.mean,
        std=RGB.std,
    )
    ours = trained(augment, RGB)
    for seed in range(10):
        image = random_image(rng)
        seed_generators(seed)
        expected = theirs(image)
        seed_generators(seed)
        assert torch.equal(ours(image), expected)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", ["rgb", "grey"])
@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos", "random"])
def test_every_policy_works_in_every_mode(
    rng: np.random.Generator, policy: str, mode: Literal["rgb", "grey"], interpolation: Any
):
    data = RGB if mode == "rgb" else GREY
    transform = trained(Augment(size=16, policy=policy, interpolation=interpolation, **PLAIN), data)
    image = random_image(rng, 16, 16)
    seen: set[bytes] = set()
    for seed in range(40):
        seed_generators(seed)
        tensor = transform(image)
        assert tensor.shape == (data.channels, 16, 16)
        assert torch.isfinite(tensor).all()
        seen.add(tensor.numpy().tobytes())
    assert len(seen) > 3, "the policy changes the image"


@pytest.mark.parametrize(
    "policy",
    ["rnd-m9", "random", "rand-9", "rand-m9.5", "rand-increasing", "augmx", "v1", "Trivial"],
)
def test_unknown_policy_is_named(policy: str):
    with pytest.raises(ConfigError, match=f"^augment.policy: unknown policy '{policy}'; there are"):
        train_transform(Augment(policy=policy), RGB)


def test_pad_crop_is_a_window_of_the_padded_image(rng: np.random.Generator):
    image = random_image(rng, 8, 8)
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)))
    transform = trained(Augment(size=8, crop="pad", padding=2, hflip=0.0), RGB)
    places: Counter[tuple[int, int]] = Counter()
    for seed in range(400):
        seed_generators(seed)
        pixels = np.rint(unnormalised(transform(image), RGB))
        (place,) = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(pixels, padded[top : top + 8, left : left + 8])
        ]
        places[place] += 1
    assert len(places) == 25


@pytest.mark.parametrize(("hflip", "vflip"), [(1.0, 0.0), (0.0, 1.0), (0.3, 0.0), (0.0, 0.3)])
def test_flips_come_as_often_as_asked(rng: np.random.Generator, hflip: float, vflip: float):
    image = random_image(rng, 6, 6)
    pixels = np.asarray(image)
    transform = trained(Augment(size=6, crop="none", hflip=hflip, vflip=vflip), RGB)
    flipped = 0
    for seed in range(300):
        seed_generators(seed)
        found = np.rint(unnormalised(transform(image), RGB))
        mirrored = pixels[:, ::-1] if hflip else pixels[::-1]
        assert np.array_equal(found, pixels) or np.array_equal(found, mirrored)
        flipped += np.array_equal(found, mirrored)
    share = max(hflip, vflip)
    assert abs(flipped / 300 - share) <= 4 * (share * (1 - share) / 300) ** 0.5


def test_erasing_happens_after_normalisation():
    augment = Augment(size=32, erase=1.0, erase_mode="const", **PLAIN)
    seed_generators(1)
    erased = trained(augment, RGB)(Image.new("RGB", (32, 32), (255, 0, 0))) == 0
    assert 0.02 * 0.5 < erased.float().mean() < 1 / 3 + 0.05
    assert torch.equal(erased[0], erased[2])


def test_jitter_gives_way_to_a_policy_but_not_to_3_augment(rng: np.random.Generator):
    image = random_image(rng, 8, 8)

    def distinct(**options: Any) -> int:
        transform = trained(Augment(size=8, **PLAIN, **options), RGB)
        return len({transform(image).numpy().tobytes() for _ in range(20)})

    assert distinct(color_jitter=0.4) > 15
    assert distinct(color_jitter=0.4, policy="rand-m9-n0") == 1
    assert distinct(color_jitter=0.0) == 1
    assert distinct(color_jitter=0.4, policy="rand-m9-n0-t3a") > 15


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (2, 1), (3, 300), (64, 48)])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_any_image_fits_the_network(
    rng: np.random.Generator,
    crop: Literal["random_resized", "pad", "none"],
    height: int,
    width: int,
    mode: str,
):
    image = random_image(rng, height, width, mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    for data in (RGB, GREY):
        shape = data.channels, 10, 14
        train = trained(Augment(size=(10, 14), crop=crop), data)
        assert {train(image).shape for _ in range(20)} == {shape}
        for crop_mode in ("center", "squash", "border"):
            evaluate = finished(eval_transform((10, 14), 0.875, crop_mode, "bicubic", data), data)
            assert evaluate(image).shape == shape


def test_random_resized_crop_differs_from_timms_only_where_timms_is_empty():
    for seed in range(2000):
        random.seed(seed)
        height, width = random.choice([(1, 1), (2, 1), (2, 3), (9, 7), (1, 30)])
        image = Image.new("L", (width, height))
        crops: list[tuple[int, int, int, int]] = []
        for cls in (RandomResizedCropAndInterpolation, RandomResizedCrop):
            random.seed(seed)
            crops.append(cls.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)))
        theirs, (top, left, rows, columns) = crops
        assert rows >= 1
        assert columns >= 1
        assert 0 <= top <= height - rows
        assert 0 <= left <= width - columns
        if theirs[2] and theirs[3]:
            assert theirs == crops[1]


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [24, (24, 16)])
@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_evaluation_equals_timms(rng: np.random.Generator, crop_mode: str, size: Any, crop: float):
    ours = finished(eval_transform(size, crop, crop_mode, "bicubic", RGB), RGB)
    theirs = timm_transform(
        size,
        crop_pct=crop,
        crop_mode=crop_mode,
        interpolation="bicubic",
        mean=RGB.mean,
        std=RGB.std,
    )
    for height, width in ((40, 60), (60, 40), (24, 24), (9, 11)):
        image = random_image(rng, height, width)
        assert torch.equal(ours(image), theirs(image))


def test_convnext_evaluation(rng: np.random.Generator):
    """Below 384: side/.875 bicubic, then the centre; from 384: the whole image, warped."""
    image = random_image(rng, 300, 200)
    below = unnormalised(
        finished(eval_transform(56, 0.875, "center", "bicubic", RGB), RGB)(image), RGB
    )
    resized = np.asarray(image.resize((64, 96), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(below, resized[20:76, 4:60], atol=0.01)
    from_384 = unnormalised(
        finished(eval_transform(64, 1.0, "squash", "bicubic", RGB), RGB)(image), RGB
    )
    warped = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(from_384, warped, atol=0.01)


def test_evaluation_draws_nothing_at_random(rng: np.random.Generator):
    image = random_image(rng)
    transform = finished(eval_transform(16, 0.875, "center", "random", RGB), RGB)
    assert torch.equal(transform(image), transform(image))


def test_an_unreadable_image_is_a_data_error():
    with pytest.raises(DataError, match="is no readable image"):
        trained(Augment(), RGB)(b"none")
