"""Where each image lies inside a zip archive."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from graftwerk.errors import DataError

LOCAL_HEADER = 30
SIGNATURE = b"PK\x03\x04"
ENCRYPTED = 0x1

Member = tuple[bytes, int, int, bool]
"""(path, offset of its first byte in the archive file, bytes there, whether they are deflated)."""


def members(path: Path) -> Iterator[Member]:
    """The files in the zip archive `path`, in its order.

    Raises:
        DataError: naming `path` and the file in it that is wrong.
    """
    try:
        with zipfile.ZipFile(path) as opened, path.open("rb", buffering=0) as file:
            for entry in opened.infolist():
                if not entry.is_dir():
                    yield _member(path, entry, file.fileno())
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: is no intact zip archive ({error}); get it again") from None


def _member(path: Path, entry: zipfile.ZipInfo, handle: int) -> Member:
    name, start = entry.filename, entry.header_offset
    where = f"{path}: {name!r} (at byte {start:,})"
    if name.startswith("/") or ".." in name.split("/"):
        raise DataError(f"{where}: lies outside of the archive; write it with relative paths")
    if entry.flag_bits & ENCRYPTED:
        raise DataError(f"{where}: is encrypted; write the archive without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where}: is neither stored nor deflated; write the archive with zip -0")
    header = os.pread(handle, LOCAL_HEADER, start)
    if len(header) < LOCAL_HEADER or header[:4] != SIGNATURE:
        raise DataError(f"{where}: no file begins there; get the archive again")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    deflated = entry.compress_type == zipfile.ZIP_DEFLATED
    return os.fsencode(name), start + LOCAL_HEADER + lengths, entry.compress_size, deflated
