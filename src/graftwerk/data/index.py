"""The index of the images in archives: written once beside them, mapped into memory by everyone.

It is a safetensors file: one column per fact, and in its header the archives it was made of, the
class names and how many images each split has. A process that opens it reads the header alone; the
columns are pages of the file, shared by all processes of a machine.

Columns, n images in all, those to train on first:
    offset [n] int64, size [n] uint32   where an image's bytes lie in its archive
    archive [n] uint16                  the archive's number
    target [n] int32                    the class's number
    name_end [n] int64, names uint8     the end of its path in the bytes of all paths
    crc32 [n] uint32                    the checksum of the bytes; only where it is known
    deflated [n] uint8                  1 where the bytes are compressed; only if any are
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors.numpy import save

from graftwerk.errors import DataError
from graftwerk.files import atomic

Build = Callable[[], tuple[dict[str, Any], dict[str, np.ndarray]]]
"""Makes (facts, columns) of an index."""
FORMAT = 1
KEY = "graftwerk"
DTYPES = {"I64": np.int64, "U32": np.uint32, "I32": np.int32, "U16": np.uint16, "U8": np.uint8}
MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Index:
    """An index as it lies on the disk."""

    path: Path
    facts: dict[str, Any]
    columns: dict[str, np.ndarray]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.facts["classes"])

    @property
    def splits(self) -> dict[str, int]:
        """Images in each split, in the order of the columns."""
        return self.facts["splits"]

    def __len__(self) -> int:
        return len(self.columns["offset"])

    def name(self, position: int) -> str:
        ends = self.columns["name_end"]
        start = int(ends[position - 1]) if position else 0
        return os.fsdecode(self.columns["names"][start : int(ends[position])].tobytes())


def write(path: Path, facts: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
    """Write the index, or nothing at all."""
    content = save(columns, {KEY: json.dumps(facts | {"format": FORMAT})})
    with atomic(path) as file:
        file.write(content)


@lru_cache(maxsize=8)
def _mapped(path: Path, modified: int) -> Index:
    del modified
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < min(MAX_HEADER, path.stat().st_size):
            raise ValueError("no header")
        header = json.loads(file.read(length))
    facts = json.loads(header.pop("__metadata__")[KEY])
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']}")
    whole = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
    columns: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        if end > len(whole):
            raise ValueError("cut off")
        columns[name] = whole[start:end].view(DTYPES[entry["dtype"]])
    return Index(path, facts, columns)


def read(path: Path) -> Index:
    """Map an index into memory; the columns are read from the disk when they are used.

    Raises:
        DataError: it is damaged, or of another version.
    """
    try:
        return _mapped(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: is no readable index ({reason}); delete it") from None


def stamp(base: Path, archives: Sequence[Path]) -> list[list[Any]]:
    """(path from `base`, bytes, time of the last change) of each: a stale index has others."""
    found: list[list[Any]] = []
    for archive in archives:
        try:
            facts = archive.stat()
        except OSError as error:
            raise DataError(f"{archive}: can't be read ({error.strerror})") from None
        found.append([archive.relative_to(base).as_posix(), facts.st_size, facts.st_mtime_ns])
    return found


def open_index(
    home: Path,
    base: Path,
    archives: Sequence[Path],
    kind: str,
    build: Build,
) -> Index:
    """The index `home` of the `archives` below `base`; one process builds it, others wait.

    An index is built anew where an archive has another size or time than it had, and kept in the
    user's cache where the archives' own folder can't be written to.
    """
    wanted = {"kind": kind, "archives": stamp(base, archives)}
    places = [home, _cached(home)]
    for place in places:
        found = _fresh(place, wanted)
        if found is not None:
            return found
    place = next((place for place in places if _writable(place)), None)
    if place is None:
        folders = " nor ".join(str(place.parent) for place in places)
        raise DataError(
            f"{home.name}: can be written neither to {folders}; "
            "set XDG_CACHE_HOME to a folder for it"
        )
    with FileLock(f"{place}.lock"):
        found = _fresh(place, wanted)
        if found is None:
            facts, columns = build()
            write(place, wanted | facts, columns)
            found = read(place)
    return found


def _fresh(place: Path, wanted: dict[str, Any]) -> Index | None:
    if not place.exists():
        return None
    try:
        index = read(place)
    except DataError:
        return None
    same = all(index.facts.get(key) == value for key, value in wanted.items())
    return index if same else None


def _cached(home: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "graftwerk"
    return cache / f"{hashlib.sha256(os.fsencode(home.absolute())).hexdigest()[:16]}.index"


def _writable(place: Path) -> bool:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(place.parent, os.W_OK)
