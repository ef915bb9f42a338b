"""Decoding and augmenting on the CPU: graftwerk against what a user would otherwise pick.

    GRAFTWERK_DATA=/path python benchmarks/loader.py [--images 600] [--rounds 3]

Takes the 600 ImageNet photographs of ``imagenet-sample-600.tar``, RandomResizedCrop(224) and flip,
to a normalised float tensor. One process, one thread, no disk: images per second of processor time.
The contenders take turns, 20 images each, so that a busy machine slows all alike. Prints JSON: for
each the images per CPU second, and the median over turns of its speed relative to PIL + torchvision
v1; for `fast` also the PSNR of the pixels against `exact`, with the same crops.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tarfile
import time
from collections.abc import Callable
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
from graftwerk.data.loader import seed_generators
from graftwerk.data.transforms import train_transform

SIZE, TURN = 224, 20
SAMPLE = "imagenet-sample-600.tar"
REFERENCE = "PIL + torchvision v1"
Contender = Callable[[bytes], Tensor]


def contenders() -> dict[str, Contender]:
    old: Any = v1.Compose(
        [
            v1.RandomResizedCrop(SIZE),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    new: Any = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    theirs: Any = create_transform(
        SIZE, is_training=True, interpolation="bilinear", color_jitter=0.0
    )
    data = Folder.model_validate({"path": "."})
    ours = {
        f"graftwerk {decode} {interpolation}": train_transform(
            Augment(size=SIZE, decode=decode, interpolation=interpolation), data
        )
        for decode in ("exact", "fast")
        for interpolation in ("bilinear", "bicubic")
    }

    def opened(raw: bytes) -> Image.Image:
        return Image.open(io.BytesIO(raw)).convert("RGB")

    def tensor(raw: bytes) -> Any:
        encoded = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        return vision_io.decode_jpeg(encoded, mode=vision_io.ImageReadMode.RGB)

    return {
        REFERENCE: lambda raw: old(opened(raw)),
        "torchvision.io + v2": lambda raw: new(tensor(raw)),
        "timm": lambda raw: theirs(opened(raw)),
        **ours,
    }


def measure(raws: list[bytes], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of each contender's turns."""
    made = contenders()
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for number in range(rounds):
        for start in range(0, len(raws), TURN):
            for name, contender in made.items():
                seed_generators(number, start)
                began = time.process_time()
                for raw in raws[start : start + TURN]:
                    contender(raw)
                seconds[name].append(time.process_time() - began)
    return seconds


def psnr(raws: list[bytes], interpolation: str) -> dict[str, float]:
    """Of `fast` against `exact`, in dB of 8-bit pixels."""
    made = contenders()
    scale = torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
    values: list[float] = []
    for number, raw in enumerate(raws):
        pair: list[Tensor] = []
        for decode in ("exact", "fast"):
            seed_generators(number)
            pair.append(made[f"graftwerk {decode} {interpolation}"](raw) * scale)
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
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if "GRAFTWERK_DATA" not in os.environ:
        sys.exit(f"set GRAFTWERK_DATA to the folder of {SAMPLE}")
    torch.set_num_threads(1)
    with tarfile.open(Path(os.environ["GRAFTWERK_DATA"]) / SAMPLE) as archive:
        files = [archive.extractfile(member) for member in archive if member.isfile()]
        raws = [file.read() for file in files[: options.images] if file is not None]
    seconds = measure(raws, options.rounds)
    reference = seconds[REFERENCE]
    results = {
        name: {
            "images per CPU second": round(len(raws) * options.rounds / sum(turns), 1),
            "times the reference": round(
                statistics.median(r / t for r, t in zip(reference, turns, strict=True)), 2
            ),
        }
        for name, turns in seconds.items()
    }
    likeness = {mode: psnr(raws, mode) for mode in ("bilinear", "bicubic")}
    print(json.dumps({"images": len(raws), "results": results, "psnr of fast": likeness}, indent=1))


if __name__ == "__main__":
    main()
