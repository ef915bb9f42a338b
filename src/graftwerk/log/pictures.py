"""Grids of images as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from graftwerk.files import replace

SMALLEST = 64
"""Smaller images are enlarged by a whole factor to at least so many pixels."""


def write_grid(
    images_nvchw: Tensor, path: Path, *, mean: Sequence[float], std: Sequence[float]
) -> None:
    """One row for each of the n images, its v versions side by side; normalised as for a network.

    Raises OSError.
    """
    versions, channels = images_nvchw.shape[1:3]
    images = images_nvchw.detach().float().cpu().flatten(0, 1)
    shape = (channels, 1, 1)
    pixels = images * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    factor = -(-SMALLEST // min(pixels.shape[2:]))
    pixels = pixels.clamp(0, 1).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    grid_chw = make_grid(pixels, nrow=versions, padding=2, pad_value=1.0)
    bytes_hwc = (grid_chw * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(bytes_hwc).save(file, "PNG")
    replace(path, file.getvalue())
