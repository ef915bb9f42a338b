"""Reading a whole data set: which images are damaged, and how fast the loader is."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from torch import Tensor

from graftwerk.data.config import Augment, Folder
from graftwerk.data.decode import decode
from graftwerk.data.loader import train_batches
from graftwerk.data.order import Order
from graftwerk.data.pack import CONTEXT
from graftwerk.data.source import Source, Splits
from graftwerk.data.transforms import train_transform
from graftwerk.errors import DataError

CHUNK = 64
BATCH = 32


def damaged_images(
    splits: Splits, workers: int, on_images: Callable[[int], None] = lambda _: None
) -> list[str]:
    """A sentence for each image that can't be read or decoded, by file and offset."""
    found: list[str] = []
    for source in (splits.train, splits.val):
        chunks = [
            range(start, min(start + CHUNK, len(source))) for start in range(0, len(source), CHUNK)
        ]
        with ProcessPoolExecutor(max(workers, 1), mp_context=CONTEXT) as pool:
            for chunk, damaged in zip(
                chunks, pool.map(partial(_damaged, source), chunks), strict=True
            ):
                found += damaged
                on_images(len(chunk))
    return found


def loader_speed(source: Source, size: int, images: int, workers: int) -> float:
    """Images per second of the loader with random crops and flips, first batch apart."""
    images = min(images, len(source)) // BATCH * BATCH
    if images < 2 * BATCH:
        raise DataError(f"{source.name(0)}: {len(source)} images are too few to measure")
    order = Order(images, BATCH)
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


def _damaged(source: Source, chunk: range) -> list[str]:
    found: list[str] = []
    for index in chunk:
        try:
            raw, _ = source.read(index)
        except DataError as error:
            found.append(str(error))
            continue
        if isinstance(raw, Tensor):  # a row of numbers
            continue
        try:
            decode(raw, "rgb")
        except DataError as error:
            found.append(f"{source.name(index)}: {error}")
    return found
