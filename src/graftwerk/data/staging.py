"""A data set on the disk of the node: copied once, used by every process and by later jobs.

A copy is made under another name and renamed when it is whole: no partial one is ever seen. A lock
lets one process copy while the others of the node wait, and goes with a process that dies. The
copy's folder is named after the files' paths, sizes and times: other data is another copy.
"""

from __future__ import annotations

import errno
import getpass
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from graftwerk.data import manifest
from graftwerk.data.archives import BRACES, find
from graftwerk.data.folder import walk
from graftwerk.errors import DataError, GraftwerkError
from graftwerk.files import atomic

DISKS = ("SLURM_TMPDIR", "TMPDIR")
COMPLETE = ".complete"
SPARE = 1.02
"""Free space wanted, relative to the bytes to copy."""
THREADS = 4
PIECE = 4 << 20
"""Bytes at a time: they stay in the cache."""

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Listing:
    """The files to copy: (path from `base`, bytes, time of the last change in ns)."""

    base: Path
    files: tuple[tuple[str, int, int], ...]

    @property
    def size(self) -> int:
        return sum(size for _, size, _ in self.files)

    @property
    def key(self) -> str:
        """Of everything but indices, which come and go beside the files that they are made of."""
        kept = [row for row in self.files if not row[0].endswith(".index")]
        told = json.dumps([str(self.base.absolute()), *kept])
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def local_disk(wanted: str) -> Path | None:
    """The folder to stage in: `wanted` itself, or for "auto" the node's own, where it has one."""
    if wanted != "auto":
        return Path(wanted).expanduser()
    return next((Path(os.environ[name]) for name in DISKS if os.environ.get(name)), None)


def list_files(path: Path) -> Listing:
    """What has to be copied for `path`, a folder or an archive with its index.

    Raises:
        DataError: there is nothing to copy, or a folder can't be read.
        OSError: a link leads nowhere.
    """
    if path.is_dir():
        base = path
        listed = (
            Path(os.fsdecode(parent), os.fsdecode(name))
            for parent, _, names in walk(os.fsencode(path))
            for name in names
        )
        found = [file for file in listed if file.is_file() or file.is_symlink()]
        found = [file for file in found if file.suffix not in (".lock", ".partial")]
    elif "{" in path.name:
        base, index = path.parent, BRACES.sub("_", path.name)
        found = [*find(path, ".tar"), base / f"{index}.index"]
        found = [file for file in found if file.exists()]
    else:
        base = path.parent
        found = [base / name for name in (path.name, f"{path.name}.index")]
        found = [file for file in found if file.exists()]
    if not found:
        raise DataError(f"{path}: no such file or folder to stage; set data.path")
    rows: list[tuple[str, int, int]] = []
    for file in sorted(found):
        facts = file.stat()
        rows.append((file.relative_to(base).as_posix(), facts.st_size, facts.st_mtime_ns))
    return Listing(base, tuple(rows))


def stage(path: Path, disk: Path, on_bytes: OnBytes = lambda _: None) -> Path:
    """The path of an intact copy of `path` on `disk`, made now or by whoever came first.

    Raises:
        DataError: the disk has no room, or what was copied is not what was read.
        OSError: the disk can't be written to.
    """
    path = path.expanduser()
    listing = list_files(path)
    home = disk / f"graftwerk-{getpass.getuser()}"
    home.mkdir(parents=True, exist_ok=True)
    target = home / listing.key
    if not (target / COMPLETE).exists():
        with FileLock(home / f"{listing.key}.lock"):
            if not (target / COMPLETE).exists():
                _copy(listing, target, on_bytes)
    return target if path.is_dir() else target / path.name


def staged(path: Path, wanted: str, warn: Callable[[str], None] | None = None) -> Path:
    """`stage`, or `path` itself with a warning where that is not possible. Tried once a process."""
    key = path, wanted
    if key not in _staged:
        _staged[key] = _or_shared(path, wanted, warn or _say)
    return _staged[key]


_staged: dict[tuple[Path, str], Path] = {}


def _or_shared(path: Path, wanted: str, warn: Callable[[str], None]) -> Path:
    disk = local_disk(wanted)
    if disk is None:
        warn(f"data.stage=auto: none of {', '.join(DISKS)} is set; reading {path} itself")
        return path
    try:
        return stage(path, disk)
    except (OSError, GraftwerkError) as error:
        warn(f"data.stage: {path} can't be copied to {disk} ({error}); reading it where it is")
        return path


def _say(warning: str) -> None:
    print(f"warning: {warning}", file=sys.stderr)


def _copy(listing: Listing, target: Path, on_bytes: OnBytes) -> None:
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    shutil.rmtree(target, ignore_errors=True)
    free = shutil.disk_usage(target.parent).free
    if free < listing.size * SPARE:
        raise DataError(
            f"{target.parent}: has {free:,} bytes free, and {listing.size:,} are to be copied"
        )
    expected = {entry.name: entry for entry in manifest.read(listing.base)}
    try:
        partial.mkdir()
        for folder in sorted({(partial / name).parent for name, _, _ in listing.files}):
            folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(THREADS) as pool:
            copies = [
                pool.submit(_copy_file, listing, row, partial, expected.get(row[0]), on_bytes)
                for row in listing.files
            ]
            for copy in copies:
                copy.result()
        with atomic(partial / COMPLETE) as file:
            file.write(json.dumps({"from": str(listing.base), "files": listing.files}).encode())
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"{target.parent}: became full; {listing.size:,} are needed") from None
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy_file(
    listing: Listing,
    row: tuple[str, int, int],
    partial: Path,
    entry: manifest.Entry | None,
    on_bytes: OnBytes,
) -> None:
    """Copy a file with its times, by which its index knows it, and check it as it passes."""
    name, size, modified = row
    source, copy = listing.base / name, partial / name
    copied, checksum = 0, hashlib.sha256()
    piece = memoryview(bytearray(PIECE))
    with source.open("rb", buffering=0) as original, copy.open("wb", buffering=0) as file:
        while count := original.readinto(piece[: manifest.BLOCK - copied % manifest.BLOCK]):
            _write(file, piece[:count])
            copied += count
            if entry is not None:
                checksum.update(piece[:count])
                if copied % manifest.BLOCK == 0 or copied == size:
                    _check(source, entry, copied, checksum.hexdigest())
                    checksum = hashlib.sha256()
            on_bytes(count)
        os.fsync(file.fileno())
    if copied != size:
        raise DataError(f"{source}: changed while it was copied")
    os.utime(copy, ns=(modified, modified))


def _write(file: io.FileIO, piece: memoryview) -> None:
    while piece:
        piece = piece[file.write(piece) :]


def _check(source: Path, entry: manifest.Entry, copied: int, checksum: str) -> None:
    """Compare the block that ends at byte `copied`."""
    number = (copied - 1) // manifest.BLOCK
    if number >= len(entry.blocks) or checksum != entry.blocks[number]:
        raise DataError(
            f"{source}: damaged after byte {number * manifest.BLOCK:,}, says the manifest"
        )
