"""DALI and FFCV for `benchmarks/loader.py`, in a Python of their own that has them installed.

    python loader_peers.py FOLDER dali|ffcv-original|ffcv-500|ffcv-256|ffcv-raw

FOLDER holds the images as ``NUMBER.jpg``. Answers each line of its input with the seconds of
processor time, of all its threads, that one pass over all images took: RandomResizedCrop(224),
flip, to batches of bytes. The first pass, in which numba compiles, is not asked for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZE, BATCH = 224, 20
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


def dali(files: list[Path]) -> Callable[[], int]:
    import numpy as np
    from nvidia.dali import fn, pipeline_def, types  # pyright: ignore[reportMissingImports]

    raws = [np.frombuffer(file.read_bytes(), dtype=np.uint8) for file in files]
    batches = [raws[start : start + BATCH] for start in range(0, len(raws), BATCH)]

    @pipeline_def(  # pyright: ignore[reportUntypedFunctionDecorator]
        batch_size=BATCH,
        num_threads=1,
        device_id=None,
        exec_pipelined=False,
        exec_async=False,
        prefetch_queue_depth=1,
    )
    def loading() -> Any:
        encoded = fn.external_source(source=batches, cycle=True, batch=True)
        crops = fn.decoders.image_random_crop(
            encoded, device="cpu", output_type=types.RGB, random_area=AREA,
            random_aspect_ratio=ASPECT,
        )  # fmt: skip
        sized = fn.resize(crops, size=(SIZE, SIZE), interp_type=types.INTERP_LINEAR)
        return fn.flip(sized, horizontal=fn.random.coin_flip())

    pipeline = loading()
    pipeline.build()
    return lambda: sum(len(pipeline.run()[0]) for _ in batches)


def ffcv(files: list[Path], max_side: int | None, mode: str) -> Callable[[], int]:
    import numpy as np
    from ffcv.fields import IntField, RGBImageField  # pyright: ignore[reportMissingImports]
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder  # pyright: ignore[reportMissingImports]
    from ffcv.loader import Loader, OrderOption  # pyright: ignore[reportMissingImports]
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage  # pyright: ignore[reportMissingImports]
    from ffcv.writer import DatasetWriter  # pyright: ignore[reportMissingImports]
    from PIL import Image

    class Images:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            return np.asarray(Image.open(files[index]).convert("RGB")), index

    prepared = files[0].parent / f"{max_side}-{mode}.beton"
    image = RGBImageField(write_mode=mode, max_resolution=max_side, jpeg_quality=90)
    DatasetWriter(
        str(prepared), {"image": image, "index": IntField()}, num_workers=1
    ).from_indexed_dataset(Images())
    crop = RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=AREA, ratio=ASPECT)
    stages = [crop, RandomHorizontalFlip(), ToTensor(), ToTorchImage()]
    loader = Loader(
        str(prepared),
        batch_size=BATCH,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        os_cache=True,
        pipelines={"image": stages, "index": None},
    )
    return lambda: sum(len(batch[0]) for batch in loader)


def contender(name: str, files: list[Path]) -> Callable[[], int]:
    kinds: dict[str, tuple[int | None, str]] = {
        "ffcv-original": (None, "jpg"), "ffcv-500": (500, "jpg"), "ffcv-256": (256, "jpg"),
        "ffcv-raw": (256, "raw"),
    }  # fmt: skip
    return dali(files) if name == "dali" else ffcv(files, *kinds[name])


def requests() -> Iterator[str]:
    yield from sys.stdin


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    files = sorted(folder.glob("*.jpg"))
    one_pass = contender(name, files)
    assert one_pass() == len(files)
    print("ready", flush=True)
    for _ in requests():
        began = time.process_time()
        one_pass()
        print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    main()
