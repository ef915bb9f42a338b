from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

from finished import batch_of
from graftwerk.axes import Batch
from graftwerk.data.config import Augment, Folder
from graftwerk.data.finish import Finish
from graftwerk.data.loader import seed_generators
from graftwerk.data.mix import build_mix
from graftwerk.data.transforms import Pixels, train_transform

DATA = Folder.model_validate({"path": "."})
CPU = torch.device("cpu")


def pixels(rng: np.random.Generator, side: int = 24) -> np.ndarray:
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bytes_become_what_torchvision_makes_of_them(
    rng: np.random.Generator, layout: torch.memory_format
):
    images = [pixels(rng) for _ in range(4)]
    batch = batch_of(*(Pixels(torch.from_numpy(image).permute(2, 0, 1)) for image in images))
    found = Finish(DATA, CPU, layout)(batch).images_nchw
    assert batch.images_nchw.dtype == torch.uint8
    assert found.is_contiguous(memory_format=layout)
    for image, one in zip(images, found, strict=True):
        assert torch.equal(one, normalize(to_tensor(image), list(DATA.mean), list(DATA.std)))


def test_what_is_finished_stays_as_it_is(rng: np.random.Generator):
    finish = Finish(DATA, CPU)
    once = finish(batch_of(Pixels(torch.from_numpy(pixels(rng)).permute(2, 0, 1))))
    assert torch.equal(finish(once).images_nchw, once.images_nchw)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_a_batch_is_erased_like_its_images_alone(rng: np.random.Generator, mode: Any):
    augment = Augment(size=24, erase=0.7, erase_mode=mode, erase_count=3)
    transform, finish = train_transform(augment, DATA), Finish(DATA, CPU)
    made: list[Pixels] = []
    for number in range(12):
        seed_generators(number)
        made.append(transform(Image.fromarray(pixels(rng))))
    together = finish(batch_of(*made))
    assert sum(len(one.patches) for one in made) > 6
    assert together.erased is None
    for one, image in zip(made, together.images_nchw, strict=True):
        assert torch.equal(finish(batch_of(one)).images_nchw[0], image)
    plain = finish(batch_of(*(Pixels(one.image_chw) for one in made))).images_nchw
    for one, image, before in zip(made, together.images_nchw, plain, strict=True):
        changed = (image != before).any(0)
        boxes = torch.zeros_like(changed)
        for top, left, values in one.patches:
            boxes[top : top + values.shape[1], left : left + values.shape[2]] = True
        assert torch.equal(changed, boxes)


def test_mixing_comes_last_and_in_training_only(rng: np.random.Generator):
    mix = build_mix(Augment(mixup=0.8), 5, smoothing=0.1)
    finish = Finish(DATA, CPU, mix=mix)
    made = [Pixels(torch.from_numpy(pixels(rng)).permute(2, 0, 1)) for _ in range(4)]
    batch = batch_of(*made)._replace(targets=torch.tensor([0, 1, 2, 3]))
    plain = finish(batch)
    seed_generators(3)
    mixed = finish(batch, mixed=True)
    seed_generators(3)
    assert mix is not None
    expected: Batch = mix(plain._replace(images_nchw=plain.images_nchw.clone()))
    assert torch.equal(mixed.images_nchw, expected.images_nchw)
    assert torch.equal(mixed.targets, expected.targets)
    assert plain.targets.tolist() == [0, 1, 2, 3]
