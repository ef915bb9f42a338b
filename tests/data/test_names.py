from __future__ import annotations

import random

import torchvision.datasets.folder
from timm.utils import misc

from graftwerk.data.names import IMG_EXTENSIONS, natural_key


def test_names_are_those_of_torchvision_and_timm() -> None:
    assert IMG_EXTENSIONS == torchvision.datasets.folder.IMG_EXTENSIONS
    rng = random.Random()
    names = ["".join(rng.choices("aB019_é-", k=rng.randrange(8))) for _ in range(300)]
    assert sorted(names, key=natural_key) == sorted(names, key=misc.natural_key)
