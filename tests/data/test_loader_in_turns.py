"""Batches whose images are decoded in turns, each to where it stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from PIL import Image
from torch import Tensor

from finished import same_batches
from graftwerk.axes import Batch
from graftwerk.data.config import Augment, Folder
from graftwerk.data.loader import Augmented, Sample, eval_batches, memory
from graftwerk.data.order import Order
from graftwerk.data.source import Raw, Source
from graftwerk.data.transforms import Cropped, Pixels, train_transform
from graftwerk.data.turns import at_once
from graftwerk.errors import DataError
from loading import batches_of, damage

DATA = Folder.model_validate({"path": "."})


def image_of(sample: Sample) -> Tensor:
    assert sample.pixels is not None
    return sample.pixels.image_chw


@pytest.mark.parametrize(
    ("mode", "interpolation"), [("rgb", "random"), ("rgb", "nearest"), ("grey", "bilinear")]
)
def test_images_taken_in_turns_are_those_taken_one_by_one(
    images: Source, mode: str, interpolation: str
):
    damage(images, 3, 4, 17)
    Image.open(images.name(6)).convert("L").save(images.name(6))  # decoded by Pillow
    data = DATA.model_copy(update={"mode": mode})
    augment = Augment.model_validate(
        {"size": (16, 20), "decode": "fast", "interpolation": interpolation}
    )
    samples = Augmented(images, train_transform(augment, data), seed=5, replace=True)
    keys = [(epoch, index, 0) for epoch in range(2) for index in range(len(images))]
    together = samples.__getitems__(keys)
    assert together.indices[:5].tolist() == [0, 1, 2, 5, 5]
    alone = [samples[key] for key in keys]
    assert torch.equal(together.images_nchw, torch.stack(list(map(image_of, alone))))
    assert together.targets.tolist() == [sample.target for sample in alone]
    assert together.indices.tolist() == [sample.position for sample in alone]
    assert together.problems == tuple(problem for sample in alone for problem in sample.problems)


def test_images_of_a_batch_are_written_where_they_stay(images: Source):
    """Nothing is copied: the batch is the memory that was handed to the crops."""
    augment = Augment(size=16, decode="fast", interpolation="bilinear")
    transform = train_transform(augment, DATA)
    assert isinstance(transform, Cropped)
    row_hwc = torch.zeros(transform.crop.shape_hwc, dtype=torch.uint8)
    image_chw = at_once(transform.steps(images.read(0)[0], row_hwc)).image_chw
    assert image_chw.data_ptr() == row_hwc.data_ptr()
    assert torch.equal(image_chw, row_hwc.permute(2, 0, 1))


def test_a_missing_image_leaves_no_hole(images: Source):
    damage(images, 1)
    augment = Augment(size=16, decode="fast", interpolation="bilinear")
    samples = Augmented(images, train_transform(augment, DATA), seed=5, replace=False)
    batch = samples.__getitems__([(0, 0, 0), (0, 1, 0), (0, 2, 0)])
    assert batch.indices.tolist() == [0, 2]
    assert len(batch.problems) == 1
    for image, index in zip(batch.images_nchw, (0, 2), strict=True):
        assert torch.equal(image, image_of(samples[0, index, 0]))


def test_a_loader_process_hands_over_the_memory_that_it_wrote(images: Source):
    augment = Augment(size=16, decode="fast", interpolation="bilinear")
    order = Order(len(images), 8, seed=5)

    def batches(workers: int) -> Iterator[Batch]:
        transform = train_transform(augment, DATA)
        return batches_of(images, transform, order, workers=workers, total_steps=4)

    for one, other in zip(batches(0), batches(1), strict=True):
        assert other.images_nchw.is_shared()
        assert same_batches(one, other)


def _too_much(raw: Raw) -> Pixels:
    del raw
    return Pixels(memory((1 << 50,)))


def test_too_little_shared_memory_is_told(images: Source):
    with pytest.raises(DataError, match=r"data\.workers: .*/dev/shm; .*data\.workers=0"):
        next(
            eval_batches(
                images,
                _too_much,
                rank=0,
                world_size=1,
                batch=4,
                workers=1,
                on_error="fail",
                pin_memory=False,
            )
        )
