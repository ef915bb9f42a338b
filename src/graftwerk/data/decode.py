"""From an encoded or decoded image of any kind to one in the mode of the data."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from graftwerk.data.config import Mode
from graftwerk.errors import DataError

PIL_MODE = {"rgb": "RGB", "grey": "L"}


def decode(raw: bytes | Image.Image, mode: Mode) -> Image.Image:
    """`raw` as an 8-bit image in PIL's mode RGB ("rgb") or L ("grey").

    As in timm and torchvision, transparency is dropped (not blended with a background) and the
    orientation in EXIF is ignored, so that an exported model sees the same pixels there. 16-bit
    values are scaled to 8 bits, not clipped.

    Raises:
        DataError: says what is wrong; the caller knows the file's name.
    """
    image = opened(raw) if isinstance(raw, bytes) else raw
    try:
        image.load()
        if image.mode.startswith(("I", "F")):
            image = _to_8_bits(image)
        if isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # else Pillow warns of what a palette's alpha loses
        return image if image.mode == PIL_MODE[mode] else image.convert(PIL_MODE[mode])
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise all sorts of exceptions on broken files
        raise DataError(f"is no readable image ({_reason(error)})") from None


def opened(raw: bytes) -> Image.Image:
    """An encoded image whose header has been read. Raises `DataError` where there is none."""
    if not raw:
        raise DataError("is no readable image (it is empty)")
    try:
        return Image.open(BytesIO(raw))
    except Exception as error:  # Pillow's readers raise all sorts of exceptions on broken files
        raise DataError(f"is no readable image ({_reason(error)})") from None


def height_width(raw: bytes) -> tuple[int, int]:
    """Of an encoded image, by its header. Raises `DataError` where there is none."""
    width, height = opened(raw).size
    return height, width


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"has pixels of mode {image.mode}, whose range nobody can know; "
            "store it with 8 or 16 bits per value"
        )
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "no known image format"
    return str(error) or type(error).__name__
