"""From a JPEG file straight to the random crop that training takes of it.

libjpeg-turbo scales by 1/2, 1/4 or 1/8 while it decodes (a smaller inverse cosine transform), and
torch resizes 8-bit pixels with antialiasing. The crop's distribution and the random numbers drawn
for it are those of `transforms.RandomResizedCrop`; pixels differ by rounding where the crop needs
all of the file's resolution, and more where decoding shrinks (docs/data.md has the numbers).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import cast

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from graftwerk.data.config import Augment, Mode
from graftwerk.data.decode import decode

JPEG = b"\xff\xd8"
SHRINKS = (8, 4, 2)


class DecodedCrop:
    """Encoded bytes, or an image, → a random crop of it at `size`, as a PIL image.

    What is no ordinary colour JPEG goes through Pillow and `crop`, as without this class.
    """

    def __init__(
        self, augment: Augment, mode: Mode, crop: RandomResizedCropAndInterpolation
    ) -> None:
        self.size = augment.height_width
        self.scale, self.ratio = augment.scale, augment.ratio
        self.interpolation = augment.interpolation
        self.mode: Mode = mode
        self.crop = cast(Callable[[Image.Image], Image.Image], crop)
        self.get_params = crop.get_params

    def __call__(self, raw: bytes | Image.Image) -> Image.Image:
        size = _size_of_jpeg(raw) if self.mode == "rgb" else None
        if size is None:
            return self.crop(decode(raw, self.mode))
        height, width = size
        state = random.getstate()
        box = self.get_params(Image.new("1", (width, height)), self.scale, self.ratio)
        mode = self.interpolation
        if mode == "random":
            mode = random.choice(("bilinear", "bicubic"))
        factor = self._factor(box[2], box[3])
        try:
            pixels = simplejpeg.decode_jpeg(
                raw, "RGB", min_height=height // factor, min_width=width // factor
            )
        except ValueError:  # Pillow decides whether it can be read, and says what is wrong
            random.setstate(state)
            return self.crop(decode(raw, self.mode))
        return _resized(_part(pixels, height, width, box), self.size, mode)

    def _factor(self, height: int, width: int) -> int:
        """By how much decoding may shrink the image without the crop falling below `size`."""
        rows, columns = self.size
        return next((f for f in SHRINKS if height >= f * rows and width >= f * columns), 1)


def _size_of_jpeg(raw: bytes | Image.Image) -> tuple[int, int] | None:
    """(rows, columns) of a colour JPEG file; None of anything else."""
    if not isinstance(raw, bytes) or not raw.startswith(JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
    except ValueError:
        return None
    return (int(height), int(width)) if colours == "YCbCr" else None


def _part(
    pixels_hwc: np.ndarray, height: int, width: int, box: tuple[int, int, int, int]
) -> np.ndarray:
    """The box (top, left, height, width) of an image that was decoded from `height` × `width`."""
    down, across = pixels_hwc.shape[0] / height, pixels_hwc.shape[1] / width
    top, left = round(box[0] * down), round(box[1] * across)
    bottom = max(round((box[0] + box[2]) * down), top + 1)
    right = max(round((box[1] + box[3]) * across), left + 1)
    return pixels_hwc[top:bottom, left:right]


def _resized(pixels_hwc: np.ndarray, size: tuple[int, int], mode: str) -> Image.Image:
    if mode not in ("bilinear", "bicubic"):
        resampling = Image.Resampling[mode.upper()]
        return Image.fromarray(pixels_hwc).resize((size[1], size[0]), resampling)
    image_nchw = torch.from_numpy(np.ascontiguousarray(pixels_hwc)).permute(2, 0, 1)[None]
    resized = F.interpolate(image_nchw, size, mode=mode, antialias=True)
    return Image.fromarray(resized[0].permute(1, 2, 0).contiguous().numpy())
