"""Which files are images, and the order of class names: as torchvision and timm have them.

Said again here, since importing these takes seconds, and commands on data need no more of them.
"""

from __future__ import annotations

import re

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def natural_key(name: str) -> list[int | str]:
    """Sorts ``class2`` before ``class10``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]
