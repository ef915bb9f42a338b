"""What a transform and the device's part of augmentation make of an image together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graftwerk.axes import Batch, Erased
from graftwerk.data.config import Augment, Data
from graftwerk.data.finish import Finish
from graftwerk.data.loader import Sample, collate
from graftwerk.data.source import Raw
from graftwerk.data.transforms import Pixels, Transform, train_transform


def finished(transform: Transform, data: Data) -> Callable[[Raw], Tensor]:
    """An image → normalised and erased [c, h, w], as a network sees it."""
    finish = Finish(data, torch.device("cpu"))
    return lambda raw: finish(batch_of(transform(raw))).images_nchw[0]


def trained(augment: Augment, data: Data) -> Callable[[Raw], Tensor]:
    return finished(train_transform(augment, data), data)


def batch_of(*pixels: Pixels) -> Batch:
    return collate([Sample(p, 0, number, ()) for number, p in enumerate(pixels)])


def same_batches(one: Batch, other: Batch) -> bool:
    """The same images, classes, positions, problems and boxes to erase, to the last bit."""
    tensors = zip([*one[:3], *_boxes(one)], [*other[:3], *_boxes(other)], strict=True)
    return tuple(one.problems) == tuple(other.problems) and all(
        torch.equal(a, b) for a, b in tensors
    )


def _boxes(batch: Batch) -> Erased | tuple[()]:
    return () if batch.erased is None else batch.erased
