"""TensorBoard events in the folder `tensorboard`."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from graftwerk.log.sink import Sink, tagged_record, tagged_row


class TensorBoard(Sink):
    """A write that fails ends its file. The next evaluation begins another one; what came in
    between is missing.
    """

    durable = True

    def __init__(self, folder: Path, run: Mapping[str, Any], resumed_at: int) -> None:
        """Steps after `resumed_at` of an earlier start are hidden: the run makes them again."""
        self._writer = SummaryWriter(
            str(folder / "tensorboard"), purge_step=resumed_at + 1, flush_secs=30
        )
        self._ended = False
        config = json.dumps(run, indent=2)
        self._writer.add_text("run", f"```json\n{config}\n```", resumed_at)

    @override
    def record(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        if not self._ended:
            self._write(step, tagged_record(values))

    @override
    def row(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        self._ended = False
        self._write(step, tagged_row(values))
        with self._writing():
            self._writer.flush()

    @override
    def figure(self, name: str, path: Path, step: int) -> None:
        if self._ended:
            return
        with Image.open(path) as image:
            pixels_hwc = np.asarray(image.convert("RGB"))
        with self._writing():
            self._writer.add_image(name, pixels_hwc, step, dataformats="HWC")

    @override
    def close(self, status: str) -> None:
        self._writer.close()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        with self._writing():
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)

    @contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError:
            self._ended = True
            self._writer.file_writer = self._writer.all_writers = None  # it opens one when needed
            raise
