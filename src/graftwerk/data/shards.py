"""WebDataset's shards: tar archives in which an image and its label share a name up to the dot."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graftwerk.data import tar
from graftwerk.data.folder import VAL_NAMES
from graftwerk.data.listing import is_image, split_told_by, whole_sizes
from graftwerk.errors import DataError

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
INFO = "_info.json"
CLASSES = "classes.txt"
MAX_LABEL = 12


@dataclass
class Sample:
    """What the members of one name have told so far."""

    key: str
    offset: int
    """Where the first of them begins."""
    image: tuple[bytes, int, int] | None = None
    label: int | None = None


@dataclass(frozen=True)
class Shards:
    """The archives of a data set, and which split each belongs to."""

    base: Path
    archives: Sequence[Path]

    def index(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(facts, columns) of the index; images in the order of the shards, training ones first.

        Raises:
            DataError: naming the shard and the offset of what is wrong.
        """
        splits = self._splits()
        rows, counts = _Rows(), dict.fromkeys(splits, 0)
        for split, numbers in splits.items():
            for number in numbers:
                before = len(rows.targets)
                for sample in samples(self.archives[number]):
                    rows.add(number, sample)
                counts[split] += len(rows.targets) - before
        classes = self._classes(rows, next(iter(counts.values())))
        return {"classes": classes, "splits": counts}, rows.columns()

    def _splits(self) -> dict[str, list[int]]:
        """The numbers of the archives of "train" and, where there is one, of a split to validate.

        timm's ``_info.json`` decides where there is one, else the archives' names.
        """
        info = self.base / INFO
        told = _from_info(info) if info.exists() else {}
        by_split: dict[str, list[int]] = {}
        for number, archive in enumerate(self.archives):
            name = archive.relative_to(self.base).as_posix()
            split = told.get(name) if told else split_told_by(name.split("/"))
            by_split.setdefault(split or "train", []).append(number)
        if "train" not in by_split:
            raise DataError(f"{self.base}: no shards to train on, of {len(self.archives)} in all")
        val = next((name for name in VAL_NAMES if name in by_split), None)
        return {name: by_split[name] for name in ("train", val) if name is not None}

    def _classes(self, rows: _Rows, num_train: int) -> list[str]:
        """Names from ``classes.txt``, one a line, else the numbers of the training labels."""
        listed = self.base / CLASSES
        largest = max(rows.targets[:num_train], default=-1)
        classes = (
            listed.read_text().splitlines()
            if listed.exists()
            else [str(number) for number in range(largest + 1)]
        )
        for position, target in enumerate(rows.targets):
            if target >= len(classes):
                source = f"{listed.name} names" if listed.exists() else "the training images have"
                raise DataError(
                    f"{self.archives[rows.archive[position]]}: {rows.names[position].decode()} "
                    f"(at byte {rows.offset[position]:,}): label {target}, and {source} "
                    f"{len(classes)} classes, from 0 on"
                )
        if len(classes) < 2:
            raise DataError(f"{self.base}: all labels are 0; a classifier needs two classes")
        return classes


def samples(shard: Path) -> Iterator[tuple[bytes, int, int, int]]:
    """(path, offset, size, label) of each image of a shard, in its order.

    Raises:
        DataError: an image without a label, a label without an image, or a key that comes twice.
    """
    sample: Sample | None = None
    seen: set[str] = set()
    with shard.open("rb", buffering=0) as file:
        for path, offset, size in tar.members(shard):
            key, extension = _key(path)
            if sample is None or key != sample.key:
                if sample is not None:
                    yield _finished(shard, sample)
                if key in seen:
                    raise DataError(f"{_at(shard, key, offset)}: the key is there twice")
                seen.add(key)
                sample = Sample(key, offset)
            if is_image(path):
                if sample.image is not None:
                    raise DataError(f"{_at(shard, key, offset)}: a second image of this key")
                sample.image = path, offset, size
            elif extension == "cls":
                text = os.pread(file.fileno(), min(size, MAX_LABEL), offset)
                sample.label = _label(shard, key, offset, text)
    if sample is not None:
        yield _finished(shard, sample)


def expand(name: str) -> list[str]:
    """``train-{000..002}.tar`` → three names, with as many digits."""
    match = BRACES.search(name)
    if match is None:
        return [name]
    first, last = match.groups()
    head, tail = name[: match.start()], expand(name[match.end() :])
    numbers = range(int(first), int(last) + 1)
    return [f"{head}{number:0{len(first)}}{rest}" for number in numbers for rest in tail]


@dataclass
class _Rows:
    archive: list[int] = field(default_factory=list[int])
    names: list[bytes] = field(default_factory=list[bytes])
    offset: list[int] = field(default_factory=list[int])
    sizes: list[int] = field(default_factory=list[int])
    targets: list[int] = field(default_factory=list[int])

    def add(self, archive: int, sample: tuple[bytes, int, int, int]) -> None:
        name, offset, size, label = sample
        self.archive.append(archive)
        self.names.append(name)
        self.offset.append(offset)
        self.sizes.append(size)
        self.targets.append(label)

    def columns(self) -> dict[str, np.ndarray]:
        return {
            "offset": np.array(self.offset, dtype=np.int64),
            "size": whole_sizes(np.array(self.sizes, dtype=np.uint64)),
            "archive": np.array(self.archive, dtype=np.uint16),
            "target": np.array(self.targets, dtype=np.int32),
            "names": np.frombuffer(b"".join(self.names), dtype=np.uint8),
            "name_end": np.cumsum([len(name) for name in self.names], dtype=np.int64),
        }


def _from_info(path: Path) -> dict[str, str]:
    """{shard: split} of timm's description of a data set."""
    try:
        splits = json.loads(path.read_text())["splits"]
        return {
            name: "val" if split in VAL_NAMES else split
            for split, facts in splits.items()
            for name in facts["filenames"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is no description of shards ({error})") from None


def _key(path: bytes) -> tuple[str, str]:
    """``a/0001.seg.cls`` → ``("a/0001", "seg.cls")``."""
    folder, _, name = os.fsdecode(path).rpartition("/")
    stem, _, extension = name.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def _finished(shard: Path, sample: Sample) -> tuple[bytes, int, int, int]:
    where = _at(shard, sample.key, sample.offset)
    if sample.image is None:
        raise DataError(f"{where}: no image of this key; its files must stand side by side")
    if sample.label is None:
        raise DataError(f"{where}: no label; it needs {sample.key}.cls with the class's number")
    return *sample.image, sample.label


def _label(shard: Path, key: str, offset: int, text: bytes) -> int:
    if not text.strip().isdigit():
        raise DataError(f"{_at(shard, key, offset)}: {text!r} is no class's number")
    return int(text)


def _at(shard: Path, key: str, offset: int) -> str:
    return f"{shard}: {key} (at byte {offset:,})"
