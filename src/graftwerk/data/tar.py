"""Where each file lies inside a tar archive, also one of tar archives.

Python's `tarfile` makes an object of every member; a data set of eleven million wants a tenth of
the time. Formats: POSIX ustar and pax, GNU. Every header's checksum is verified, and an archive
that is cut off, names a file outside of itself or holds links is refused: an index must not guess.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from graftwerk.errors import DataError

BLOCK = 512
REGULAR = b"07\0"
LONG_NAME, PAX = b"Lx"
EMPTY = b"3456"
"""Devices, folders and pipes: no data follows, whatever their size says."""
SKIPPED = b"gKDV"
"""Global headers, names of links, GNU's folder listings and volume labels."""
UNCHECKED = 4096
"""Headers whose checksums are computed together."""
PADDING = 1 << 20
"""What lies behind the end of an archive is looked at up to so many bytes."""

Member = tuple[bytes, int, int]
"""(path, offset of its first byte in the archive file, size in bytes)."""


def members(path: Path) -> Iterator[Member]:
    """The files in the tar archive `path`, in its order, those of inner tar archives in place.

    A file of an inner archive ``n01440764.tar`` has the path ``n01440764/…``, as if that had been
    unpacked beside it.

    Raises:
        DataError: naming `path` and the offset of what is wrong.
    """
    try:
        with path.open("rb", buffering=0) as file:
            yield from Archive(path, file.fileno()).files(0, path.stat().st_size, b"")
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None


@dataclass
class Archive:
    path: Path
    handle: int
    headers: list[bytes] = field(default_factory=list[bytes])
    """Read and not yet verified, with the places where they start."""
    places: list[int] = field(default_factory=list[int])

    def files(self, start: int, end: int, folder: bytes) -> Iterator[Member]:
        """The files of the archive that lies between `start` and `end`, below `folder`."""
        position, long_name, long_size, pread = start, None, None, os.pread
        while True:
            header = pread(self.handle, BLOCK, position)
            if len(header) < BLOCK or position + BLOCK > end:
                raise self._wrong(position, "the archive is cut off here; get it again")
            if not header[0] and not header.strip(b"\0"):
                self._verify()
                return self._ends(position, end)
            self.headers.append(header)
            self.places.append(position)
            if len(self.headers) == UNCHECKED:
                self._verify()
            size = self._number(header, position) if long_size is None else long_size
            kind, data = header[156], position + BLOCK
            next_position = data + (size + BLOCK - 1) // BLOCK * BLOCK
            if data + size > end:
                raise self._wrong(position, "the archive is cut off within this file; get it again")
            if kind in REGULAR:
                name = folder + self._clean(long_name or _name(header), position)
                long_name = long_size = None
                if name.endswith(b".tar"):
                    yield from self.files(data, data + size, name[:-4] + b"/")
                elif not name.endswith(b"/"):
                    yield name, data, size
            elif kind == LONG_NAME:
                long_name = pread(self.handle, size, data).rstrip(b"\0")
            elif kind == PAX:
                long_name, long_size = self._pax(pread(self.handle, size, data), position)
            elif kind in EMPTY:
                long_name = long_size = None
                next_position = data
            elif kind not in SKIPPED:
                raise self._unknown(kind, long_name or _name(header), position)
            position = next_position

    def _number(self, header: bytes, position: int) -> int:
        """The size: octal digits, or GNU's base 256 for more than 8 GiB."""
        if header[124] & 0x80:
            return int.from_bytes(header[125:136], "big")
        try:
            return int(header[124:136].rstrip(b"\0 ") or b"0", 8)
        except ValueError:
            raise self._wrong(position, "no tar header stands here") from None

    def _clean(self, name: bytes, position: int) -> bytes:
        if name.startswith(b"./"):
            name = name[2:]
        if name.startswith(b"/") or (b".." in name and b".." in name.split(b"/")):
            shown = os.fsdecode(name)
            raise self._wrong(
                position, f"{shown!r} lies outside of the archive; write it with relative paths"
            )
        return name

    def _pax(self, records: bytes, position: int) -> tuple[bytes | None, int | None]:
        """(path, size) where the extended header replaces them."""
        found: dict[bytes, bytes] = {}
        rest = records
        while rest.strip(b"\0"):
            length, _, _ = rest.partition(b" ")
            if not length.isdigit() or not 0 < int(length) <= len(rest):
                raise self._wrong(position, "a damaged extended header")
            key, _, value = rest[len(length) + 1 : int(length) - 1].partition(b"=")
            found[key] = value
            rest = rest[int(length) :]
        if any(key.startswith(b"GNU.sparse") for key in found):
            raise self._wrong(position, "a sparse file; write the archive without --sparse")
        size = found.get(b"size")
        return found.get(b"path"), int(size) if size is not None else None

    def _ends(self, position: int, end: int) -> None:
        """Nothing but zeros may follow: archives appended to another would go unnoticed."""
        rest = os.pread(self.handle, min(end - position, PADDING), position)
        if len(rest) < 2 * BLOCK:
            raise self._wrong(position, "the archive is cut off here; get it again")
        if rest.strip(b"\0") or end - position > PADDING:
            raise self._wrong(
                position, "the archive ends here, and more follows; pack what was appended anew"
            )

    def _verify(self) -> None:
        """The checksum of a header is the sum of its bytes, its own field counted as spaces."""
        if not self.headers:
            return
        bytes_nb = np.frombuffer(b"".join(self.headers), dtype=np.uint8).reshape(-1, BLOCK)
        sums = bytes_nb.sum(axis=1, dtype=np.int64) - bytes_nb[:, 148:156].sum(axis=1) + 8 * 32
        stated = [_octal(header[148:156]) for header in self.headers]
        (wrong,) = np.nonzero(sums != stated)
        places = self.places.copy()
        self.headers.clear()
        self.places.clear()
        if len(wrong):
            raise DataError(
                f"{self.path}: at byte {places[wrong[0]]:,}: no tar header stands here, or a "
                "damaged one; is the archive compressed, or its download broken?"
            )

    def _wrong(self, position: int, what: str) -> DataError:
        """The earlier of two problems is the cause: headers that wait are verified first."""
        try:
            self._verify()
        except DataError as earlier:
            return earlier
        return DataError(f"{self.path}: at byte {position:,}: {what}")

    def _unknown(self, kind: int, name: bytes, position: int) -> DataError:
        shown = os.fsdecode(name)
        if kind in b"12":
            return self._wrong(
                position,
                f"{shown!r} is a link; write the archive with tar's --hard-dereference "
                "and --dereference",
            )
        if kind == ord("S"):
            return self._wrong(position, f"{shown!r} is sparse; write the archive without --sparse")
        return self._wrong(position, f"{shown!r} is of the unknown type {chr(kind)!r}")


def _octal(digits: bytes) -> int:
    try:
        return int(digits.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return -1


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name
