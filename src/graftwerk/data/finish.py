"""The last part of augmentation, on the device: normalise, erase, mix.

Loader processes hand over bytes, a quarter of what floats would take, and draw all random numbers
of an image; here is arithmetic alone. The bits are those of torchvision's ToTensor and Normalize
and of timm's RandomErasing, wherever it runs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graftwerk.axes import Batch, Encoded, Erased
from graftwerk.data.config import Data
from graftwerk.data.mix import Mix


class Finish:
    """Batches of a loader → batches for a network, on `device` in the memory format `layout`.

    Floats, such as rows of tables, are moved and left as they are.
    """

    def __init__(
        self,
        data: Data,
        device: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
        mix: Mix | None = None,
        decoder: Callable[[Encoded], Tensor] | None = None,
    ) -> None:
        """`decoder`: of batches that come encoded, to uint8 [n, c, h, w]."""
        self.layout, self.device, self.mix, self.decoder = layout, device, mix, decoder
        self.mean_c11, self.std_c11 = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (data.mean, data.std)
        )

    def __call__(self, batch: Batch, *, mixed: bool = False) -> Batch:
        """`mixed`: with Mixup and CutMix, where there are any."""
        if batch.encoded is not None:
            assert self.decoder is not None
            batch = batch._replace(images_nchw=self.decoder(batch.encoded), encoded=None)
        images_nchw = batch.images_nchw.to(
            self.device, non_blocking=True, memory_format=self.layout
        )
        if images_nchw.dtype == torch.uint8:
            images_nchw = images_nchw.to(self.mean_c11.dtype).div_(255)
            images_nchw.sub_(self.mean_c11).div_(self.std_c11)
        if batch.erased is not None:
            erase_(images_nchw, batch.erased)
        batch = batch._replace(
            images_nchw=images_nchw,
            targets=batch.targets.to(self.device, non_blocking=True),
            erased=None,
        )
        return self.mix(batch) if mixed and self.mix is not None else batch


def erase_(images_nchw: Tensor, erased: Erased) -> None:
    """In place, each box takes its values."""
    boxes: list[list[int]] = erased.boxes_k5.tolist()
    channels = images_nchw.shape[1]
    parts = erased.values.to(images_nchw.device, non_blocking=True).split(
        [channels * rows * columns for *_, rows, columns in boxes]
    )
    for (image, top, left, rows, columns), values in zip(boxes, parts, strict=True):
        box_chw = images_nchw[image, :, top : top + rows, left : left + columns]
        box_chw.copy_(values.view(channels, rows, columns))
