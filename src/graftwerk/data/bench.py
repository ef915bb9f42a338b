"""How fast the training loader is."""

from __future__ import annotations

import time

from graftwerk.data.config import Augment, Folder
from graftwerk.data.loader import train_batches
from graftwerk.data.order import Order
from graftwerk.data.source import Source
from graftwerk.data.transforms import train_transform
from graftwerk.errors import DataError

BATCH = 32


def loader_speed(source: Source, size: int, images: int, workers: int) -> float:
    """Images per second of the loader with random crops and flips, first batch apart."""
    images = min(images, len(source))
    if images < 2 * BATCH:
        raise DataError(
            f"{source.name(0)}: {images} of {len(source)} images are too few to measure; "
            f"{2 * BATCH} and more are needed"
        )
    order = Order(images // BATCH * BATCH, BATCH)
    batches = train_batches(
        source,
        train_transform(Augment(size=size), Folder.model_validate({"path": "."})),
        order,
        seed=0,
        rank=0,
        world_size=1,
        micro=BATCH,
        workers=workers,
        on_error="skip",
        start_step=0,
        total_steps=order.steps_per_epoch,
        pin_memory=False,
    )
    next(batches)
    began = time.monotonic()
    seen = sum(len(batch.indices) for batch in batches)
    return seen / (time.monotonic() - began)
