"""Where DALI is installed, it is tried on the CPU: it decodes there what a GPU would decode."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from graftwerk.axes import Batch
from graftwerk.config import load
from graftwerk.data.config import Augment, Folder
from graftwerk.data.dali import decoder
from graftwerk.data.finish import Finish
from graftwerk.data.loader import Sample, collate, seed_generators
from graftwerk.data.transforms import train_transform
from graftwerk.errors import ConfigError, DataError

DATA = Folder.model_validate({"path": "."})
CPU = torch.device("cpu")


def files(rng: np.random.Generator, count: int = 5) -> list[bytes]:
    raws: list[bytes] = []
    for number in range(count):
        height, width = rng.integers(60, 200, 2).tolist()
        noise = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
        image, buffer = Image.fromarray(noise), io.BytesIO()
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        keys = {"subsampling": "4:4:4"} if number < 4 else {}
        image.save(buffer, "JPEG" if number < 4 else "PNG", **keys)
        raws.append(buffer.getvalue())
    return raws


def batch(raws: list[bytes], **keys: object) -> Batch:
    augment = Augment.model_validate({"size": 48, "interpolation": "bilinear", **keys})
    transform, samples = train_transform(augment, DATA), list[Sample]()
    for number, raw in enumerate(raws):
        seed_generators(number)
        samples.append(Sample(transform(raw), 0, number, ()))
    return Finish(DATA, CPU, decoder=decoder(augment, CPU))(collate(samples))


def test_loader_processes_hand_over_files_and_crops(rng: np.random.Generator):
    raws = files(rng)
    augment = Augment(size=48, decode="dali", interpolation="bilinear")
    transform = train_transform(augment, DATA)
    encoded = collate([Sample(transform(raw), 0, 0, ()) for raw in raws]).encoded
    assert encoded is not None
    assert encoded.data.numpy().tobytes() == b"".join(raws)
    assert encoded.crops_n6[:, 0].tolist() == [len(raw) for raw in raws]
    with pytest.raises(DataError, match="is no readable image"):
        transform(b"no image")
    with pytest.raises(DataError, match="is not encoded"):
        transform(Image.new("RGB", (9, 9)))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_dali_takes_the_crops_that_pillow_takes(rng: np.random.Generator, interpolation: str):
    pytest.importorskip("nvidia.dali")
    raws = files(rng)
    dali, exact = (
        batch(raws, decode=decode, interpolation=interpolation, erase=0.5)
        for decode in ("dali", "exact")
    )
    assert dali.images_nchw.shape == exact.images_nchw.shape == (5, 3, 48, 48)
    error_n = ((dali.images_nchw - exact.images_nchw) * 0.225).square().mean((1, 2, 3))
    psnr_n = -10 * error_n.log10()
    assert psnr_n.min() > 38


def test_dali_says_that_an_image_is_damaged(rng: np.random.Generator):
    pytest.importorskip("nvidia.dali")
    raws = files(rng)
    raws[2] = raws[2][:700]
    with pytest.raises(DataError, match="DALI can't decode an image"):
        batch(raws, decode="dali")


def test_without_dali_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with pytest.raises(ConfigError, match=r"graftwerk\[dali\]"):
        decoder(Augment(decode="dali"), CPU)
    assert decoder(Augment(decode="fast"), CPU) is None


@pytest.mark.parametrize("key", ["policy=rand-m9", "color_jitter=0.4", "vflip=0.5", "crop=pad"])
def test_what_dali_does_not_do_is_refused(key: str):
    augment = load(Augment, {"decode": "dali", **dict([key.split("=")])})
    with pytest.raises(ConfigError, match=r"augment\.decode: 'dali'"):
        train_transform(augment, DATA)


def test_grey_images_are_refused():
    with pytest.raises(ConfigError, match=r"data\.mode=grey"):
        train_transform(Augment(decode="dali"), DATA.model_copy(update={"mode": "grey"}))
