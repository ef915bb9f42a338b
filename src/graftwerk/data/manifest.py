"""Checksums of a data set's files, so that a copy can be trusted and damage be found.

``manifest.json`` beside the files: for each its size and the SHA-256 of every 64 MiB of it, so that
a damaged file says where.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from graftwerk.errors import DataError
from graftwerk.files import atomic

NAME = "manifest.json"
BLOCK = 64 << 20
FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """A file: its path from the manifest's folder, its bytes, and the SHA-256 of each block."""

    name: str
    size: int
    blocks: tuple[str, ...]


def describe(folder: Path, name: str, on_bytes: Callable[[int], None] = lambda _: None) -> Entry:
    """Read a file once and compute its checksums."""
    path = folder / name
    blocks: list[str] = []
    for block in read_blocks(path):
        blocks.append(hashlib.sha256(block).hexdigest())
        on_bytes(len(block))
    return Entry(name, path.stat().st_size, tuple(blocks))


def read_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            yield block


def write(folder: Path, entries: list[Entry]) -> None:
    with atomic(folder / NAME) as file:
        facts = {"format": FORMAT, "block": BLOCK, "files": [asdict(entry) for entry in entries]}
        file.write(json.dumps(facts, indent=1).encode())


def read(folder: Path) -> list[Entry]:
    """The entries of a folder's manifest; none where it has no manifest."""
    path = folder / NAME
    if not path.exists():
        return []
    try:
        facts = json.loads(path.read_text())
        if facts["format"] != FORMAT or facts["block"] != BLOCK:
            raise ValueError(f"format {facts['format']}")
        return [Entry(f["name"], f["size"], tuple(f["blocks"])) for f in facts["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no readable manifest ({error}); delete it") from None


def problems(folder: Path, entry: Entry, on_bytes: Callable[[int], None]) -> list[str]:
    """What is wrong with a file, each time with the offset of the damaged block."""
    path = folder / entry.name
    try:
        size = path.stat().st_size
        if size != entry.size:
            return [f"{path}: has {size:,} bytes instead of {entry.size:,}"]
        found: list[str] = []
        for number, block in enumerate(read_blocks(path)):
            if hashlib.sha256(block).hexdigest() != entry.blocks[number]:
                found.append(f"{path}: damaged within {BLOCK:,} bytes from {number * BLOCK:,} on")
            on_bytes(len(block))
        return found
    except OSError as error:
        return [f"{path}: can't be read ({error.strerror})"]
