"""From a stored image straight to the random crop that training takes of it.

libjpeg-turbo decodes what the crop needs (`jpeg`), at 1/2, 1/4 or 1/8 of the size where that is
enough, and torch resizes 8-bit pixels with antialiasing; stored pixels (PPM) are read in place. The
crop's distribution and the random numbers drawn for it are those of `transforms.RandomResizedCrop`;
pixels differ by rounding where the file has all of its chroma, by chroma that is not smoothed where
it has not, and more where decoding shrinks (docs/benchmarks.md has the numbers).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import simplejpeg
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop

from graftwerk.data.config import Augment, Mode
from graftwerk.data.decode import decode
from graftwerk.data.jpeg import START_OF_IMAGE, Box, Jpeg
from graftwerk.data.turns import Steps, at_once

PPM = re.compile(rb"P6\n(\d+) (\d+)\n255\n")
SHRINKS = (8, 4, 2)
RESIZE: dict[str, Callable[..., Tensor]] = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}


class DecodedCrop:
    """Encoded bytes, or an image, → a random crop of it at `size`: uint8 [3, h, w], or an image.

    Every other one (`augment.hflip`) is mirrored: so is the crop, before it is enlarged. What is
    neither an ordinary colour JPEG nor a PPM goes through Pillow and `crop`, as without this class.
    """

    def __init__(
        self, augment: Augment, mode: Mode, crop: RandomResizedCropAndInterpolation
    ) -> None:
        self.size = augment.height_width
        self.scale, self.ratio = augment.scale, augment.ratio
        self.interpolation = augment.interpolation
        self.hflip = augment.hflip
        self.mode: Mode = mode
        self.crop = cast(Callable[[Image.Image], Image.Image], crop)
        self.get_params = cast(Callable[..., Box], crop.get_params)

    def __call__(self, raw: bytes | Image.Image) -> Tensor | Image.Image:
        return at_once(self.steps(raw))

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        return (*self.size, 3 if self.mode == "rgb" else 1)

    def steps(
        self, raw: bytes | Image.Image, row_hwc: Tensor | None = None
    ) -> Steps[Tensor | Image.Image]:
        """Drawing the crop, decoding, resizing; the first step draws all random numbers.

        A crop that torch resizes is written to `row_hwc`, where there is one, and nowhere else.
        """
        mirrored = self.draw_mirrored()
        stored = stored_as(raw) if self.mode == "rgb" and isinstance(raw, bytes) else None
        if stored is None:
            return _mirrored(self.crop(decode(raw, self.mode)), mirrored)
        box = self.draw_box(stored.height, stored.width)
        mode = self.interpolation
        if mode == "random":
            mode = random.choice(("bilinear", "bicubic"))
        yield
        try:
            pixels = stored.part(box, self._factor(*box[2:])).copy()
        except ValueError:  # Pillow decides whether it can be read, and says what is wrong
            image: Any = decode(raw, self.mode)
            image = resized_crop(image, *box, list(self.size), InterpolationMode(mode))
            return _mirrored(image, mirrored)
        yield
        if mode in RESIZE:
            if row_hwc is None:
                row_hwc = torch.empty((*self.size, 3), dtype=torch.uint8)
            return _resized(pixels, mode, mirrored, row_hwc)
        image = Image.fromarray(pixels)
        resampling = Image.Resampling[mode.upper()]
        return _mirrored(image.resize(self.size[::-1], resampling), mirrored)

    def draw_mirrored(self) -> bool:
        return self.hflip > 0 and torch.rand(1).item() < self.hflip

    def draw_box(self, height: int, width: int) -> Box:
        """In an image of that size."""
        nothing = torch.empty((height, width), device="meta")
        return self.get_params(nothing, self.scale, self.ratio)

    def _factor(self, height: int, width: int) -> int:
        """By how much decoding may shrink the image without the crop falling below `size`."""
        rows, columns = self.size
        return next((f for f in SHRINKS if height >= f * rows and width >= f * columns), 1)


@dataclass(frozen=True)
class Ppm:
    raw: bytes
    start: int
    """Where the pixels begin."""
    height: int
    width: int

    def part(self, box: Box, factor: int) -> np.ndarray:
        """The box [h, w, 3] of the image. Raises `ValueError` where it is cut off."""
        del factor
        pixels = np.frombuffer(self.raw, np.uint8, self.height * self.width * 3, self.start)
        top, left, height, width = box
        return pixels.reshape(self.height, self.width, 3)[top : top + height, left : left + width]


def stored_as(raw: bytes) -> Jpeg | Ppm | None:
    """A colour JPEG file or a PPM; None of anything else."""
    if header := PPM.match(raw):
        return Ppm(raw, header.end(), height=int(header[2]), width=int(header[1]))
    if not raw.startswith(START_OF_IMAGE):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
    except ValueError:
        return None
    return Jpeg(raw, int(height), int(width)) if colours == "YCbCr" else None


def _mirrored(image: Image.Image, mirrored: bool) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


def _resized(pixels_hwc: np.ndarray, mode: str, mirrored: bool, row_hwc: Tensor) -> Tensor:
    """As `torch.nn.functional.interpolate`, which makes memory of its own for each image."""
    image_hwc = torch.from_numpy(pixels_hwc)
    if mirrored:
        image_hwc = image_hwc.flip(1)
    image_nchw, row_nchw = (hwc[None].permute(0, 3, 1, 2) for hwc in (image_hwc, row_hwc))
    RESIZE[mode](image_nchw, row_nchw.shape[2:], align_corners=False, out=row_nchw)
    return row_nchw[0]
