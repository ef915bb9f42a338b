"""Images in tar and zip archives, read in any order by their offsets; nothing is unpacked."""

from __future__ import annotations

import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftwerk.data import devkit, shards, zip
from graftwerk.data.index import Build, Index, open_index, read
from graftwerk.data.listing import Listing, is_image
from graftwerk.data.source import Part, Splits, stratified_split
from graftwerk.errors import DataError

MOST_OPEN = 64
BRACES = re.compile(r"[{}]")


class Files:
    """Open files by path, for reading at an offset: safe to share with forked processes.

    A file must be what it was when its index was made: an offset in another one would give an
    image with a wrong label.
    """

    def __init__(self) -> None:
        self._handles: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, size: int, modified: int, offset: int, count: int) -> bytes:
        handle = self._handles.get(path)
        if handle is None:
            handle = self._open(path, size, modified)
        found = os.pread(handle, count, offset)
        while 0 < len(found) < count:
            more = os.pread(handle, count - len(found), offset + len(found))
            if not more:
                break
            found += more
        return found

    def _open(self, path: Path, size: int, modified: int) -> int:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        facts = os.fstat(handle)
        if (facts.st_size, facts.st_mtime_ns) != (size, modified):
            os.close(handle)
            raise DataError(f"{path}: has changed since this run began; start the run again")
        self._handles[path] = handle
        if len(self._handles) > MOST_OPEN:
            os.close(self._handles.popitem(last=False)[1])
        return handle


_files = Files()


@dataclass(frozen=True)
class ArchiveSource:
    """The images from `start` up to `stop` of an index; pickled as its path alone."""

    folder: Path
    index: Index
    start: int
    stop: int

    @property
    def targets(self) -> np.ndarray:
        return self.index.columns["target"][self.start : self.stop]

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, index: int) -> tuple[bytes, int]:
        columns, position = self.index.columns, self.start + index
        name, size, modified = self.index.facts["archives"][int(columns["archive"][position])]
        count, offset = int(columns["size"][position]), int(columns["offset"][position])
        try:
            found = _files.read(self.folder / name, size, modified, offset, count)
        except OSError as error:
            raise DataError(f"{self.name(index)}: can't be read ({error.strerror})") from None
        if len(found) != count:
            raise DataError(f"{self.name(index)}: the archive ends after {len(found):,} bytes")
        if "deflated" in columns and columns["deflated"][position]:
            found = self._inflate(found, index)
        return found, int(columns["target"][position])

    def name(self, index: int) -> str:
        """``/data/train.tar: n01440764/n01440764_10026.JPEG (at byte 1,536)``."""
        columns, position = self.index.columns, self.start + index
        archive = self.index.facts["archives"][int(columns["archive"][position])][0]
        offset = int(columns["offset"][position])
        return f"{self.folder / archive}: {self.index.name(position)} (at byte {offset:,})"

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.folder, self.index.path, self.start, self.stop)

    def _inflate(self, found: bytes, index: int) -> bytes:
        try:
            return zlib.decompress(found, wbits=-zlib.MAX_WBITS)
        except zlib.error as error:
            raise DataError(f"{self.name(index)}: is damaged ({error})") from None


def _reopen(folder: Path, index: Path, start: int, stop: int) -> ArchiveSource:
    return ArchiveSource(folder, read(index), start, stop)


def open_tar(path: Path, holdout: float, seed: int) -> Splits:
    """Images in the tar archive `path`, or in all ``*.tar`` of the folder `path`.

    Inner tar archives count as folders. The class of an image is the last folder of its path; the
    split is told by a folder before that or by the archive's name (``train.tar``,
    ``imagenet21k_val/…``). Without a split to validate on, the share `holdout` of each class is
    held out by `seed`.

    Raises:
        DataError: naming the archive and the offset of what is wrong.
    """

    def listed(base: Path, archives: list[Path]) -> Listing:
        listing = Listing(base, archives)
        for number, archive in enumerate(archives):
            listing.add(number, devkit.members(archive))
        return listing

    return _open(path, "tar", holdout, seed, listed)


def open_zip(path: Path, holdout: float, seed: int) -> Splits:
    """The same as `open_tar` for zip archives, whose files may be stored or deflated."""

    def listed(base: Path, archives: list[Path]) -> Listing:
        listing = Listing(base, archives)
        for number, archive in enumerate(archives):
            for name, offset, size, deflated in zip.members(archive):
                if is_image(name):
                    listing.put(number, name, offset, size, deflated)
        return listing

    return _open(path, "zip", holdout, seed, listed)


def open_shards(path: Path, holdout: float, seed: int) -> Splits:
    """WebDataset's shards: images and their ``.cls`` files side by side in tar archives.

    `path` is a folder of shards, or of one folder per split; timm's ``_info.json`` there says which
    belong to which, else the names do (``imagenet1k-train-0000.tar``). Braces as in
    ``train-{0000..0099}.tar`` select some. Images keep the order of the shards.
    """
    return _open(path, "shards", holdout, seed, shards.Shards)


def _open(
    path: Path,
    kind: str,
    holdout: float,
    seed: int,
    listed: Callable[[Path, list[Path]], Listing | shards.Shards],
) -> Splits:
    path = path.expanduser()
    base = path if path.is_dir() else path.parent
    archives = find(path, ".zip" if kind == "zip" else ".tar")
    name = kind if path.is_dir() else BRACES.sub("_", path.name)

    def build() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return listed(base, archives).index()

    return indexed(base, name, archives, kind, build, holdout, seed)


def indexed(
    base: Path,
    name: str,
    archives: list[Path],
    kind: str,
    build: Build,
    holdout: float,
    seed: int,
) -> Splits:
    """The images of `archives` by their index ``name.index`` in the folder `base`."""
    index = open_index(base / f"{name}.index", base, archives, kind, build)
    counts = list(index.splits.values())
    train = ArchiveSource(base, index, 0, counts[0])
    if len(counts) == 2:
        return Splits(train, ArchiveSource(base, index, counts[0], sum(counts)), index.classes)
    kept, held_out = stratified_split(train.targets, holdout, seed)
    return Splits(Part(train, kept), Part(train, held_out), index.classes)


def find(path: Path, suffix: str) -> list[Path]:
    """The archives that `path` stands for: itself, those that its braces name, or a folder's.

    In a folder they lie directly, or in its folders.
    """
    if "{" in path.name:
        found = [path.parent / name for name in shards.expand(path.name)]
        missing = [archive.name for archive in found if not archive.exists()]
        if missing:
            raise DataError(f"{path}: {len(missing)} of {len(found)} are missing: {missing[0]} …")
        return found
    if path.is_dir():
        found = sorted([*path.glob(f"*{suffix}"), *path.glob(f"*/*{suffix}")])
        if not found:
            raise DataError(f"{path}: no {suffix} archives in it; set data.path")
        return found
    if not path.exists():
        raise DataError(f"{path}: no such file; set data.path")
    return [path]
