"""Reading a whole data set: which images are damaged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from PIL import Image

from graftwerk.data.decode import decode
from graftwerk.data.source import Source, Splits
from graftwerk.data.workers import processes
from graftwerk.errors import DataError

CHUNK = 64


def damaged_images(
    splits: Splits, workers: int, on_images: Callable[[int], None] = lambda _: None
) -> list[str]:
    """A sentence for each image that can't be read or decoded, by file and offset."""
    found: list[str] = []
    for source in (splits.train, splits.val):
        chunks = [
            range(start, min(start + CHUNK, len(source))) for start in range(0, len(source), CHUNK)
        ]
        with processes(max(workers, 1)) as pool:
            for chunk, damaged in zip(
                chunks, pool.map(partial(_damaged, source), chunks), strict=True
            ):
                found += damaged
                on_images(len(chunk))
    return found


def _damaged(source: Source, chunk: range) -> list[str]:
    found: list[str] = []
    for index in chunk:
        try:
            raw, _ = source.read(index)
        except DataError as error:
            found.append(str(error))
            continue
        if not isinstance(raw, bytes | Image.Image):  # a row of numbers
            continue
        try:
            decode(raw, "rgb")
        except DataError as error:
            found.append(f"{source.name(index)}: {error}")
    return found
