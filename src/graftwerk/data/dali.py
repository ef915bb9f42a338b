"""NVIDIA DALI decodes crops on the device (the extra dali).

Order, crops, mirroring and erasing are drawn by loader processes, as for any other decoder, so that
a run sees the same crops; DALI gets the bytes of the files and the boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graftwerk.axes import Encoded
from graftwerk.data.config import Augment
from graftwerk.errors import ConfigError, DataError

THREADS = 4
"""Of DALI, for what the GPU doesn't decode."""


def decoder(augment: Augment, device: torch.device) -> Callable[[Encoded], Tensor] | None:
    """What decodes batches for `augment`; None where loader processes do.

    Raises:
        ConfigError: DALI is not installed.
    """
    if augment.decode != "dali":
        return None
    try:
        from nvidia import dali  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise ConfigError(
            [
                "augment.decode: 'dali' needs the extra dali, 'fast' needs none: "
                f"pip install 'graftwerk[dali]' ({error})"
            ]
        ) from None
    del dali
    return Decoder(augment, device)


class Decoder:
    """Encoded images → crops [n, 3, h, w] as uint8 on `device`."""

    def __init__(self, augment: Augment, device: torch.device) -> None:
        self.size, self.interpolation = augment.height_width, augment.interpolation
        self.device = device
        self.most = 0
        self.pipeline: Any = None

    def __call__(self, encoded: Encoded) -> Tensor:
        """Raises `DataError` where DALI can't decode one of the images."""
        crops_n6 = encoded.crops_n6.numpy().astype(np.int32)
        if self.pipeline is None or len(crops_n6) > self.most:
            self.most = max(self.most, len(crops_n6))
            self.pipeline = self._built()
        ends = crops_n6[:, 0].cumsum()
        self.pipeline.feed_input("data", np.split(encoded.data.numpy(), ends[:-1]))
        for name, columns in (("top_left", [1, 2]), ("height_width", [3, 4]), ("mirrored", 5)):
            self.pipeline.feed_input(name, np.ascontiguousarray(crops_n6[:, columns]))
        try:
            (images,) = self.pipeline.run()
        except RuntimeError as error:
            self.pipeline = None  # it is of no use after an error
            raise DataError(
                f"DALI can't decode an image: {error}\n`graftwerk data verify` names the damaged "
                "ones; with augment.decode=fast, data.on_error=skip leaves them out"
            ) from None
        return self._tensor(images)

    def _tensor(self, images: Any) -> Tensor:
        from nvidia.dali.plugin.pytorch import feed_ndarray  # pyright: ignore[reportMissingImports]

        images_nhwc = torch.empty(
            (len(images), *self.size, 3), dtype=torch.uint8, device=self.device
        )
        on_gpu = self.device.type == "cuda"
        stream = torch.cuda.current_stream(self.device) if on_gpu else None
        feed_ndarray(images.as_tensor(), images_nhwc, cuda_stream=stream)
        return images_nhwc.permute(0, 3, 1, 2)

    def _built(self) -> Any:
        from nvidia.dali import Pipeline, fn, types  # pyright: ignore[reportMissingImports]

        on_gpu = self.device.type == "cuda"
        interpolation = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
        pipeline = Pipeline(
            batch_size=self.most,
            num_threads=THREADS,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=1,
        )
        with pipeline:
            crops = fn.decoders.image_slice(
                fn.external_source(name="data"),
                device="mixed" if on_gpu else "cpu",
                start=fn.external_source(name="top_left"),
                shape=fn.external_source(name="height_width"),
                axis_names="HW",
                output_type=types.RGB,
                adjust_orientation=False,
            )
            sized = fn.resize(crops, size=self.size, interp_type=interpolation[self.interpolation])
            pipeline.set_outputs(fn.flip(sized, horizontal=fn.external_source(name="mirrored")))
        pipeline.build()
        return pipeline
