"""Data sets of small real images in every container, all of the same images."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from graftwerk.data.source import Source, Splits

Files = dict[str, bytes]
"""Path → content."""


def jpeg(rng: np.random.Generator, height: int = 20, width: int = 24) -> bytes:
    buffer = io.BytesIO()
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def tree(rng: np.random.Generator, per_class: int = 5) -> Files:
    """Two splits of three classes, whose natural order is not that of bytes."""
    return {
        f"{split}/{name}/{number:02}.jpg": jpeg(rng)
        for split, count in (("train", per_class), ("val", 2))
        for name in ("bird10", "bird9", "ant")
        for number in range(count)
    }


def write_files(files: Files, folder: Path) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def tar_bytes(files: Iterable[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def write_tar(files: Files, path: Path, format: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files.items(), format))
    return path


def write_zip(files: Files, path: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_shards(splits: Splits, folder: Path, per_shard: int = 4) -> Path:
    """As the webdataset package writes them; labels are class numbers."""
    for split, source in (("train", splits.train), ("val", splits.val)):
        for start in range(0, len(source), per_shard):
            members: Files = {}
            for index in range(start, min(start + per_shard, len(source))):
                raw, target = source.read(index)
                assert isinstance(raw, bytes)
                members |= {f"{index:06}.jpg": raw, f"{index:06}.cls": str(target).encode()}
            write_tar(members, folder / f"{split}-{start // per_shard:06}.tar")
    (folder / "classes.txt").write_text("\n".join(splits.classes))
    return folder


def content(source: Source) -> list[tuple[object, int]]:
    return [source.read(index) for index in range(len(source))]


def same(one: Splits, other: Splits) -> bool:
    """Whether both hold the same bytes with the same labels, in the same order."""
    return (
        one.classes == other.classes
        and content(one.train) == content(other.train)
        and content(one.val) == content(other.val)
        and one.train.targets.tolist() == [target for _, target in content(other.train)]
    )


def write_groups(splits: Splits, path: Path, **changes: Any) -> Path:
    """Our layout, written by hand from its description."""
    with h5py.File(path, "w") as file:
        file.attrs["classes"] = json.dumps(list(splits.classes))
        for name, source in (("train", splits.train), ("val", splits.val)):
            raws = [bytes(raw) for raw, _ in content(source)]  # pyright: ignore[reportArgumentType]
            columns = {
                "bytes": np.frombuffer(b"".join(raws), np.uint8),
                "offsets": np.cumsum([0, *map(len, raws)]),
                "targets": source.targets,
                "crc32": np.array([zlib.crc32(raw) for raw in raws], np.uint32),
                "names": [f"{i}.jpg" for i in range(len(raws))],
            }
            for column, values in (columns | changes).items():
                if values is not None:
                    file[f"{name}/{column}"] = values
    return path
