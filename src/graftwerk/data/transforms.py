"""From an image as it is stored to the pixels that the network sees, as bytes.

timm's transforms in timm's order: crop, flips, policy, colour jitter. What follows, normalising and
erasing, is left to `finish`, on the device; the boxes to erase are drawn here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, ResizeKeepRatio
from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train
from torch import Tensor
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    RandomCrop,
    TrivialAugmentWide,
)
from torchvision.transforms.functional import get_image_size, pil_to_tensor, to_pil_image

from graftwerk.data.config import Augment, Data, Interpolation, Mode, Size, Table
from graftwerk.data.decode import decode, height_width
from graftwerk.data.fast import DecodedCrop
from graftwerk.data.source import Raw
from graftwerk.data.turns import Steps, at_once
from graftwerk.errors import ConfigError, DataError


class Patch(NamedTuple):
    """A box of an image, and the normalised values [c, rows, columns] that cover it."""

    top: int
    left: int
    values_chw: Tensor


class Pixels(NamedTuple):
    """An image as uint8 [c, h, w], or a row of a table as float32 [c, 1, 1]."""

    image_chw: Tensor
    patches: tuple[Patch, ...] = ()
    """What random erasing puts over the normalised image, in this order."""
    crop: tuple[int, int, int, int, bool] | None = None
    """(top, left, height, width, mirrored) of what the device is to decode; then `image_chw` holds
    the bytes of a file [n]."""


Transform = Callable[[Raw], Pixels]
"""Of what a source reads; a `Cropped` one in steps, too."""

NUMBER = r"\d+(\.\d+)?"
POLICY = re.compile(
    rf"rand(-(m|n|mmax|inc)\d+|-(p|mstd){NUMBER}|-t(weights|3aw?))*"
    rf"|(original|originalr|v0|v0r|3a)(-mstd{NUMBER})?"
    rf"|augmix(-(m|w|d|b)\d+|-(a|mstd){NUMBER})*"
)
"""What timm understands; it ignores some misspelt parts and asserts on others."""


def train_transform(augment: Augment, data: Data) -> Transform:
    """Decoding and random augmentation of one image; draws from the three global generators.

    The rows of a table stay as they are.

    As in timm, a policy takes the place of colour jitter, except for the ``3a`` policies, which
    are meant to be used with it.

    Raises:
        ConfigError: unknown `augment.policy`.
    """
    if isinstance(data, Table):
        return _row
    if augment.decode == "dali" and (
        augment.policy
        or augment.color_jitter
        or augment.vflip
        or augment.interpolation not in ("bilinear", "bicubic")
        or data.mode != "rgb"
    ):
        raise ConfigError(
            [
                "augment.decode: 'dali' crops, mirrors and resizes (bilinear or bicubic), in RGB; "
                "augment.policy, color_jitter, vflip and data.mode=grey need 'fast' or 'exact'"
            ]
        )
    warping: Interpolation = (  # Pillow rotates and shears without Lanczos
        "bicubic" if augment.interpolation == "lanczos" else augment.interpolation
    )
    stages = transforms_imagenet_train(
        augment.height_width,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip if augment.decode == "exact" else 0.0,
        vflip=augment.vflip,
        color_jitter=augment.color_jitter or None,  # pyright: ignore[reportArgumentType]
        auto_augment=_timm_policy(augment),
        interpolation=warping,
        mean=data.mean,  # policies fill with it
        separate=True,
    )
    crop_and_flip, colour, _ = cast(tuple[Compose, Compose, Compose], stages)
    colours = list(colour.transforms)
    if augment.policy == "trivial":
        colours = [TrivialAugmentWide(interpolation=InterpolationMode(_fixed(warping)))]
    stages = [
        *_decode_and_crop(augment, data.mode),
        *crop_and_flip.transforms[1:],
        *([as_image, *colours] if colours else []),
    ]
    crop, *others = stages
    erase = erasing(augment) if augment.erase else None
    if isinstance(crop, DecodedCrop) and not others:
        if augment.decode == "dali":
            return Undecoded(crop, augment.height_width, erase)
        if erase is None:
            return Cropped(crop)
    return Trained(Compose(stages), erase)


@dataclass(frozen=True)
class Cropped:
    """Nothing but a random crop: many images may be taken in turns."""

    crop: DecodedCrop

    def __call__(self, raw: Raw) -> Pixels:
        return at_once(self.steps(raw))

    def steps(self, raw: Raw, row_hwc: Tensor | None = None) -> Steps[Pixels]:
        """`row_hwc`: where the image is written to, if it need not be copied there."""
        assert not isinstance(raw, Tensor)
        return Pixels(as_tensor((yield from self.crop.steps(raw, row_hwc))))


@dataclass(frozen=True)
class Trained:
    """The transforms of training, one after the other."""

    stages: Callable[[Any], Image.Image | Tensor]
    erasing: RandomErasing | None

    def __call__(self, raw: Raw) -> Pixels:
        image_chw = as_tensor(self.stages(raw))
        if self.erasing is None:
            return Pixels(image_chw)
        canvas = Canvas(image_chw)
        self.erasing(canvas)
        return Pixels(image_chw, tuple(canvas.patches))


@dataclass(frozen=True)
class Undecoded:
    """Files as they are, with the crop and the boxes to erase that were drawn for them."""

    crop: DecodedCrop
    size: tuple[int, int]
    erasing: RandomErasing | None

    def __call__(self, raw: Raw) -> Pixels:
        if not isinstance(raw, bytes):
            raise DataError("is not encoded; augment.decode=dali decodes files")
        mirrored = self.crop.draw_mirrored()
        box = self.crop.draw_box(*height_width(raw))
        canvas = Canvas(torch.empty((3, *self.size), device="meta"))
        if self.erasing is not None:
            self.erasing(canvas)
        data = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        return Pixels(data, tuple(canvas.patches), (*box, mirrored))


def erasing(augment: Augment) -> RandomErasing:
    """As timm's transforms have it."""
    return RandomErasing(
        augment.erase, mode=augment.erase_mode, max_count=augment.erase_count, device="cpu"
    )


class Canvas:
    """What timm's RandomErasing takes for a normalised image: remembers what is put where."""

    dtype = torch.float32

    def __init__(self, image_chw: Tensor) -> None:
        self.size = image_chw.size
        self.patches: list[Patch] = []

    def __setitem__(self, box: tuple[slice, slice, slice], values: Tensor) -> None:
        _, rows, columns = box
        height, width = rows.stop - rows.start, columns.stop - columns.start
        values_chw = values.expand(-1, height, width)
        self.patches.append(Patch(rows.start, columns.start, values_chw))


def as_tensor(image: Image.Image | Tensor) -> Tensor:
    """uint8 [c, h, w]."""
    return image if isinstance(image, Tensor) else pil_to_tensor(image)


def as_image(image: Image.Image | Tensor) -> Image.Image:
    return to_pil_image(image) if isinstance(image, Tensor) else image


def eval_transform(
    size: Size, crop: float, crop_mode: str, interpolation: Interpolation, data: Data
) -> Transform:
    """timm's evaluation: resize so that the centre crop to `size` is the share `crop` of it.

    `crop_mode` "center" keeps the aspect ratio and cuts the longer side, "squash" warps the image
    to the shape of `size`, "border" keeps all of the image and pads with the mean. The ConvNeXt
    paper's evaluation is crop=0.875, "center" below 384 pixels and crop=1, "squash" from there.
    An interpolation that is random in training is bicubic here. Rows of tables stay as they are.
    """
    if isinstance(data, Table):
        return _row
    resize, *rest = transforms_imagenet_eval(
        size,
        crop_pct=crop,
        crop_mode=crop_mode,
        interpolation=_fixed(interpolation),
        mean=data.mean,  # borders are filled with it
        normalize=False,
    ).transforms
    if crop_mode == "border":
        resize = ResizeLongest(resize.size, longest=1.0, interpolation=_fixed(interpolation))
    return Trained(Compose([partial(decode, mode=data.mode), resize, *rest[:-1]]), None)


def _row(raw: Raw) -> Pixels:
    assert isinstance(raw, Tensor)
    return Pixels(raw)


class RandomResizedCrop(RandomResizedCropAndInterpolation):
    """timm's, which cuts zero pixels out of an image of one or two; here it is at least one."""

    @staticmethod
    def get_params(
        img: Any, scale: tuple[float, float], ratio: tuple[float, float]
    ) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the crop."""
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(img, scale, ratio)
        columns, rows = get_image_size(img)
        return min(top, rows - 1), min(left, columns - 1), max(height, 1), max(width, 1)


class ResizeLongest(ResizeKeepRatio):
    """timm's, which shrinks the short side of a very long image to zero; here it is at least 1."""

    @staticmethod
    def get_params(*args: Any, **kwargs: Any) -> list[int]:
        """(height, width) of the resized image."""
        return [max(side, 1) for side in ResizeKeepRatio.get_params(*args, **kwargs)]


def _decode_and_crop(augment: Augment, mode: Mode) -> list[Callable[[Any], Any]]:
    if augment.decode == "exact":
        return [partial(decode, mode=mode), *_crop(augment)]
    if augment.crop != "random_resized":
        raise ConfigError(
            [
                f"augment.decode: {augment.decode!r} decodes for random_resized crops, "
                f"not {augment.crop!r} ones"
            ]
        )
    (crop,) = _crop(augment)
    return [DecodedCrop(augment, mode, cast(RandomResizedCropAndInterpolation, crop))]


def _crop(augment: Augment) -> list[Callable[[Any], Any]]:
    """`pad` and `none` expect images of `size`; others are first resized and cut in the centre."""
    size = augment.height_width
    if augment.crop == "random_resized":
        return [RandomResizedCrop(size, augment.scale, augment.ratio, augment.interpolation)]
    whole = [ResizeKeepRatio(size, interpolation=augment.interpolation), CenterCrop(size)]
    if augment.crop == "none":
        return whole
    mode = "constant" if augment.padding_mode == "zero" else augment.padding_mode
    return [*whole, RandomCrop(size, augment.padding, padding_mode=mode)]


def _timm_policy(augment: Augment) -> str | None:
    if augment.policy in (None, "trivial"):
        return None
    if not POLICY.fullmatch(augment.policy):
        raise ConfigError(
            [
                f"augment.policy: unknown policy {augment.policy!r}; there are trivial, and timm's "
                "rand-…, augmix-…, original, originalr, v0, v0r and 3a, such as "
                "'rand-m9-mstd0.5-inc1'"
            ]
        )
    return augment.policy


def _fixed(interpolation: Interpolation) -> Interpolation:
    return "bicubic" if interpolation == "random" else interpolation
