"""Decoding and augmenting on the CPU: graftwerk against what a user would otherwise pick.

    GRAFTWERK_DATA=/path python benchmarks/loader.py [--images 600] [--rounds 5] [--peers PYTHON]
        [--only CONTENDER …]

Takes the ImageNet photographs of ``imagenet-sample-600.tar``, RandomResizedCrop(224) and flip, to
batches of 20. One process, one thread, no disk: images per second of processor time. The contenders
take turns, a pass over all images each, so that a busy machine slows all alike. With ``--peers``, a
Python that has DALI and FFCV, they run as processes of their own, FFCV from files that it prepared
itself: as they are, at most 500 or 256 pixels long in JPEG of quality 90, and 256 in raw pixels;
graftwerk from those that `graftwerk data pack` would write. Prints JSON: for each the images per
CPU second, and the median over rounds of its speed relative to PIL + torchvision v1 and to the
peers; for `fast` also the PSNR of the pixels against `exact`, with the same crops.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import io as vision_io
from torchvision import transforms as v1
from torchvision.transforms import v2

from graftwerk.data.config import IMAGENET_MEAN, IMAGENET_STD, Augment, Folder
from graftwerk.data.finish import Finish
from graftwerk.data.loader import Augmented, seed_generators
from graftwerk.data.pack import Recode, recoded
from graftwerk.data.transforms import train_transform

SIZE, BATCH = 224, 20
SAMPLE = "imagenet-sample-600.tar"
REFERENCE = "PIL + torchvision v1"
PACKED = {
    "500": Recode(max_side=500, encode="jpeg"),
    "256": Recode(max_side=256, encode="jpeg"),
    "raw": Recode(max_side=256, encode="raw"),
}
PEERS = ("dali", "ffcv-original", "ffcv-500", "ffcv-256", "ffcv-raw")
DATA = Folder.model_validate({"path": "."})
Pass = Callable[[], float]
"""Takes all images once; the seconds of processor time."""


def one_by_one(raws: list[bytes], transform: Callable[[bytes], Tensor]) -> Pass:
    """Images by `transform`, stacked to batches."""
    return timed(raws, lambda part: torch.stack([transform(raw) for raw in part]))


def ours(raws: list[bytes], decode: str, interpolation: str, *, finished: bool = False) -> Pass:
    """As a loader process of graftwerk; `finished`: and what follows on the device, on the CPU."""
    augment = Augment.model_validate(
        {"size": SIZE, "decode": decode, "interpolation": interpolation}
    )
    images = Augmented(InMemory(raws), train_transform(augment, DATA), seed=0, replace=False)
    finish = Finish(DATA, torch.device("cpu"), torch.channels_last)
    epochs = itertools.count()

    def one_pass() -> float:
        epoch = next(epochs)
        began = time.process_time()
        for start in range(0, len(raws), BATCH):
            keys = [(epoch, n, 0) for n in range(start, min(start + BATCH, len(raws)))]
            batch = images.__getitems__(keys)
            if finished:
                finish(batch)
        return time.process_time() - began

    return one_pass


@dataclass(frozen=True)
class InMemory:
    """A source of images, all of one class."""

    raws: list[bytes]

    @property
    def targets(self) -> np.ndarray:
        return np.zeros(len(self.raws), np.int64)

    def __len__(self) -> int:
        return len(self.raws)

    def read(self, index: int) -> tuple[bytes, int]:
        return self.raws[index], 0

    def name(self, index: int) -> str:
        return str(index)


def timed(raws: list[bytes], batch: Callable[[list[bytes]], object]) -> Pass:
    def one_pass() -> float:
        began = time.process_time()
        for start in range(0, len(raws), BATCH):
            batch(raws[start : start + BATCH])
        return time.process_time() - began

    return one_pass


def libraries(raws: list[bytes]) -> dict[str, Pass]:
    old: Any = v1.Compose(
        [
            v1.RandomResizedCrop(SIZE),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    crop: Any = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])
    new: Any = v2.Compose(
        [crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )
    theirs: Any = create_transform(
        SIZE, is_training=True, interpolation="bilinear", color_jitter=0.0
    )

    def opened(raw: bytes) -> Image.Image:
        return Image.open(io.BytesIO(raw)).convert("RGB")

    def tensor(raw: bytes) -> Any:
        encoded = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        return vision_io.decode_jpeg(encoded, mode=vision_io.ImageReadMode.RGB)

    return {
        REFERENCE: one_by_one(raws, lambda raw: old(opened(raw))),
        "torchvision.io + v2": one_by_one(raws, lambda raw: new(tensor(raw))),
        "torchvision.io + v2, bytes": one_by_one(raws, lambda raw: crop(tensor(raw))),
        "timm": one_by_one(raws, lambda raw: theirs(opened(raw))),
    }


@contextlib.contextmanager
def peers(
    python: str | None, raws: list[bytes], wanted: Sequence[str]
) -> Generator[dict[str, Pass]]:
    """DALI and FFCV, each a process that waits for its turn."""
    if python is None:
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for number, raw in enumerate(raws):
            Path(folder, f"{number:04}.jpg").write_bytes(raw)
        started: dict[str, Pass] = {}
        for name in filter(PEERS.__contains__, wanted):
            words = [python, str(Path(__file__).with_name("loader_peers.py")), folder, name]
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert process.stdin is not None
            assert process.stdout is not None
            stack.callback(process.wait)
            stack.callback(process.stdin.close)
            while process.stdout.readline().strip() != "ready":
                assert process.poll() is None, f"{name} ended"
            started[name] = lambda process=process: ask(process)
        yield started


def ask(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def psnr(raws: list[bytes], interpolation: str) -> dict[str, float]:
    """Of `fast` against `exact`, in dB of 8-bit pixels."""
    made = [
        train_transform(
            Augment.model_validate(
                {"size": SIZE, "decode": decode, "interpolation": interpolation}
            ),
            DATA,
        )
        for decode in ("exact", "fast")
    ]
    values: list[float] = []
    for number, raw in enumerate(raws):
        pair: list[Tensor] = []
        for transform in made:
            seed_generators(number)
            pair.append(transform(raw).image_chw.double())
        error = float(((pair[0] - pair[1]) ** 2).mean())
        values.append(float(10 * np.log10(255**2 / max(error, 1e-9))))
    values.sort()
    return {
        "median": round(statistics.median(values), 1),
        "lowest 5 %": round(values[len(values) // 20], 1),
        "lowest": round(values[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", help="a Python with DALI and FFCV")
    parser.add_argument("--only", nargs="+", help="contenders by name, such as dali")
    options = parser.parse_args()
    if "GRAFTWERK_DATA" not in os.environ:
        sys.exit(f"set GRAFTWERK_DATA to the folder of {SAMPLE}")
    torch.set_num_threads(1)
    with tarfile.open(Path(os.environ["GRAFTWERK_DATA"]) / SAMPLE) as archive:
        files = [archive.extractfile(member) for member in archive if member.isfile()]
        raws = [file.read() for file in files[: options.images] if file is not None]
    passes = libraries(raws)
    for decode in ("exact", "fast"):
        for interpolation in ("bilinear", "bicubic"):
            passes[f"graftwerk {decode} {interpolation}"] = ours(raws, decode, interpolation)
    passes["graftwerk fast bilinear, normalised"] = ours(raws, "fast", "bilinear", finished=True)
    for name, recode in PACKED.items():
        packed = [recoded(raw, recode)[0] for raw in raws]
        passes[f"graftwerk fast bilinear, {name}"] = ours(packed, "fast", "bilinear")
    with peers(options.peers, raws, options.only or PEERS) as others:
        passes |= others
        passes = {name: p for name, p in passes.items() if name in (options.only or passes)}
        for one_pass in passes.values():
            one_pass()
        rounds = [
            {name: one_pass() for name, one_pass in passes.items()} for _ in range(options.rounds)
        ]
    print(json.dumps(summary(rounds, raws), indent=1))


def summary(rounds: list[dict[str, float]], raws: list[bytes]) -> dict[str, Any]:
    def times(name: str, other: str) -> float:
        return round(statistics.median(seconds[other] / seconds[name] for seconds in rounds), 2)

    against = {"dali": "", "ffcv-original": "", "ffcv-500": ", 500", "ffcv-256": ", 256"}
    against["ffcv-raw"] = ", raw"
    told: dict[str, Any] = {
        "images": len(raws),
        "images per CPU second": {
            name: round(len(raws) / statistics.median(seconds[name] for seconds in rounds))
            for name in rounds[0]
        },
        "graftwerk fast bilinear, times the peer": {
            peer: times(f"graftwerk fast bilinear{suffix}", peer)
            for peer, suffix in against.items()
            if {peer, f"graftwerk fast bilinear{suffix}"} <= rounds[0].keys()
        },
    }
    if REFERENCE in rounds[0]:
        told["times the reference"] = {name: times(name, REFERENCE) for name in rounds[0]}
        told["psnr of fast"] = {mode: psnr(raws, mode) for mode in ("bilinear", "bicubic")}
    return told


if __name__ == "__main__":
    main()
