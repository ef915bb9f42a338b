"""From a stored image straight to the random crop that training takes of it.

libjpeg-turbo decodes no rows below the crop, scales by 1/2, 1/4 or 1/8 (a smaller inverse cosine
transform), and torch resizes 8-bit pixels with antialiasing; stored pixels (PPM) are read in place.
The crop's
distribution and the random numbers drawn for it are those of `transforms.RandomResizedCrop`; pixels
differ by rounding where the crop needs all of the file's resolution, and more where decoding
shrinks (docs/benchmarks.md has the numbers).
"""

from __future__ import annotations

import math
import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop

from graftwerk.data.config import Augment, Mode
from graftwerk.data.decode import decode

JPEG = b"\xff\xd8"
PPM = re.compile(rb"P6\n(\d+) (\d+)\n255\n")
SHRINKS = (8, 4, 2)
START_OF_FRAME, START_OF_SCAN = (0xC0, 0xC1), 0xDA
"""Markers of sequential files; others, such as progressive ones, come in scans of all rows."""
CONTEXT = 4
"""Rows below the crop that its last row may depend on, where chroma is interpolated."""
REST_LEFT_OUT = re.compile("extraneous bytes before marker 0xd9")
"""What libjpeg-turbo says of the rows below."""

Box = tuple[int, int, int, int]
"""(top, left, height, width)."""


class DecodedCrop:
    """Encoded bytes, or an image, → a random crop of it at `size`: uint8 [3, h, w], or an image.

    What is neither an ordinary colour JPEG nor a PPM goes through Pillow and `crop`, as without
    this class.
    """

    def __init__(
        self, augment: Augment, mode: Mode, crop: RandomResizedCropAndInterpolation
    ) -> None:
        self.size = augment.height_width
        self.scale, self.ratio = augment.scale, augment.ratio
        self.interpolation = augment.interpolation
        self.mode: Mode = mode
        self.crop = cast(Callable[[Image.Image], Image.Image], crop)
        self.get_params = cast(Callable[..., Box], crop.get_params)

    def __call__(self, raw: bytes | Image.Image) -> Tensor | Image.Image:
        stored = stored_as(raw) if self.mode == "rgb" and isinstance(raw, bytes) else None
        if stored is None:
            return self.crop(decode(raw, self.mode))
        nothing = torch.empty((stored.height, stored.width), device="meta")
        box = self.get_params(nothing, self.scale, self.ratio)
        mode = self.interpolation
        if mode == "random":
            mode = random.choice(("bilinear", "bicubic"))
        try:
            pixels = stored.part(box, self._factor(*box[2:]))
        except ValueError:  # Pillow decides whether it can be read, and says what is wrong
            image: Any = decode(raw, self.mode)
            return resized_crop(image, *box, list(self.size), InterpolationMode(mode))
        return _resized(pixels, self.size, mode)

    def _factor(self, height: int, width: int) -> int:
        """By how much decoding may shrink the image without the crop falling below `size`."""
        rows, columns = self.size
        return next((f for f in SHRINKS if height >= f * rows and width >= f * columns), 1)


@dataclass(frozen=True)
class Jpeg:
    raw: bytes
    height: int
    width: int

    def part(self, box: Box, factor: int) -> np.ndarray:
        """The box [h, w, 3] of the image, decoded at 1/`factor` of its size.

        Raises `ValueError` where libjpeg-turbo objects to anything.
        """
        height = min(self.height, box[0] + box[2] + CONTEXT * factor)
        pixels = self._upper(height, factor)
        down = -(-self.height // factor) / self.height
        across = pixels.shape[1] / self.width
        top, left = round(box[0] * down), round(box[1] * across)
        bottom = max(round((box[0] + box[2]) * down), top + 1)
        right = max(round((box[1] + box[3]) * across), left + 1)
        return np.ascontiguousarray(pixels[top:bottom, left:right])

    def _upper(self, height: int, factor: int) -> np.ndarray:
        """The first `height` rows of the image, at 1/`factor` of its size."""
        raw, place = self.raw, _place_of_height(self.raw)
        if place is None:
            height = self.height
        elif height < self.height:
            raw = bytearray(self.raw)
            raw[place : place + 2] = height.to_bytes(2, "big")
        shape = -(-height // factor), -(-self.width // factor), 3
        pixels = _scratch(math.prod(shape))
        try:
            simplejpeg.decode_jpeg(
                raw,
                "RGB",
                min_height=height // factor,
                min_width=self.width // factor,
                buffer=pixels,
            )
        except ValueError as error:
            # It tells of the first thing that is wrong, after it has decoded all it can.
            if raw is self.raw or not REST_LEFT_OUT.search(str(error)):
                raise
        return pixels[: math.prod(shape)].reshape(shape)


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
        part = pixels.reshape(self.height, self.width, 3)[top : top + height, left : left + width]
        return part.copy()


def _place_of_height(raw: bytes) -> int | None:
    """Where the frame header has the image's height; None where rows don't follow one another."""
    place, marker = None, 2
    while len(raw) > marker + 9 and raw[marker] == 0xFF:
        kind = raw[marker + 1]
        if kind in START_OF_FRAME:
            place = marker + 5
        elif kind == START_OF_SCAN:
            return place if raw[marker + 4] == 3 else None
        marker += 2 + int.from_bytes(raw[marker + 2 : marker + 4], "big")
    return None


def stored_as(raw: bytes) -> Jpeg | Ppm | None:
    """A colour JPEG file or a PPM; None of anything else."""
    if header := PPM.match(raw):
        return Ppm(raw, header.end(), height=int(header[2]), width=int(header[1]))
    if not raw.startswith(JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
    except ValueError:
        return None
    return Jpeg(raw, int(height), int(width)) if colours == "YCbCr" else None


_memory: dict[int, np.ndarray] = {}


def _scratch(size: int) -> np.ndarray:
    """Memory to decode into, the same for every image of a thread: fresh pages cost time."""
    thread = threading.get_ident()
    found = _memory.get(thread)
    if found is None or len(found) < size:
        found = _memory[thread] = np.empty(size, np.uint8)
    return found


def _resized(pixels_hwc: np.ndarray, size: tuple[int, int], mode: str) -> Tensor | Image.Image:
    if mode not in ("bilinear", "bicubic"):
        resampling = Image.Resampling[mode.upper()]
        return Image.fromarray(pixels_hwc).resize((size[1], size[0]), resampling)
    image_nchw = torch.from_numpy(pixels_hwc)[None].permute(0, 3, 1, 2)  # stays channels-last
    return F.interpolate(image_nchw, size, mode=mode, antialias=True)[0]
