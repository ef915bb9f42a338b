"""What an objective shows of a few validation images, drawn at every evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from graftwerk.axes import Batch
from graftwerk.evaluate import evaluating
from graftwerk.log.logbook import Logbook
from graftwerk.log.pictures import write_grid
from graftwerk.parts import Parts

SHOWN = 8
"""Images in a picture: the first of rank 0's share of the validation split."""


class Pictures:
    """Draws rank 0's pictures of one run as `pictures/NAME-STEP.png` in its folder."""

    def __init__(self, parts: Parts, folder: Path) -> None:
        self._parts = parts
        self._folder = folder / "pictures"
        self._shown: Batch | None = None

    def remembering(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the first images of the first of them are kept to be drawn."""
        for batch in batches:
            if self._shown is None:
                images_nchw, targets, indices, *_ = batch
                self._shown = Batch(images_nchw[:SHOWN], targets[:SHOWN], indices[:SHOWN])
            yield batch

    def draw(self, net: nn.Module, step: int, logbook: Logbook) -> None:
        """The pictures of `net` after `step` steps. A full disk is logged and stops nothing."""
        parts, data = self._parts, self._parts.run.data
        if self._shown is None:
            return
        objective = parts.objective
        with evaluating(objective, net), torch.inference_mode(), parts.precision.autocast():
            pictures = objective.pictures(parts.to_device(self._shown))
        for name, images_nvchw in pictures.items():
            path = self._folder / f"{name}-{step:08d}.png"
            try:
                self._folder.mkdir(exist_ok=True)
                write_grid(images_nvchw, path, mean=data.mean, std=data.std)
            except OSError as error:
                logbook.event("picture_failed", reason=f"{path}: {error.strerror}")
            else:
                logbook.figure(name, path, step)
