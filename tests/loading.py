"""The training loader of one rank, and images that it can't read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graftwerk.axes import Batch
from graftwerk.data.loader import train_batches
from graftwerk.data.order import Order
from graftwerk.data.source import Source
from graftwerk.data.transforms import Transform


def batches_of(
    source: Source, transform: Transform, order: Order, **changes: Any
) -> Iterator[Batch]:
    """Two epochs, unless `changes` says something else."""
    options: dict[str, Any] = {
        "seed": 5,
        "rank": 0,
        "world_size": 1,
        "micro": order.batch_size,
        "workers": 0,
        "on_error": "fail",
        "start_step": 0,
        "total_steps": 2 * order.steps_per_epoch,
        "pin_memory": False,
    }
    return train_batches(source, transform, order, **{**options, **changes})


def damage(source: Source, *positions: int) -> None:
    for position in positions:
        path = Path(source.name(position))
        path.write_bytes(path.read_bytes()[:300])
