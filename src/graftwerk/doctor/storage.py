"""The disks that a run writes to: what they do, how fast, and whether locks work there."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from graftwerk.data.staging import local_disk
from graftwerk.doctor.finding import Finding, amount

TRIAL = 2**25
"""Bytes that are written to measure a disk."""
SLOW = 20 * 2**20
"""Bytes per second below which checkpoints of a large network take long."""
LITTLE = 5 * 2**30
"""Free bytes below which a run may fill the disk."""
SKEW = 5.0
"""Seconds: more, and times of files say nothing about this machine's."""


def check(folder: Path) -> Iterator[Finding]:
    yield from _disk("run folders", folder)
    disk = local_disk("auto")
    scratch = Path(tempfile.gettempdir()) if disk is None else disk
    unset = "" if disk else "set TMPDIR to a local disk for data.stage=auto to use it"
    yield from _disk("scratch", scratch, unset=unset)


def _disk(what: str, folder: Path, unset: str = "") -> Iterator[Finding]:
    try:
        with _trial_folder(folder) as trial:
            yield _space(what, folder, unset)
            yield _speed(f"{what}: writing", trial)
            if what == "run folders":
                yield _renames(trial)
                yield _locks(trial)
                yield _time(trial)
    except OSError as error:
        advice = "log.folder=… names another" if what == "run folders" else "set TMPDIR to another"
        yield Finding(what, f"{folder}: {error.strerror}", "broken", advice)


@contextlib.contextmanager
def _trial_folder(folder: Path) -> Generator[Path]:
    """A folder of its own inside `folder`, which is made where it is not there."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as trial:
            yield Path(trial)
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _space(what: str, folder: Path, unset: str) -> Finding:
    usage = shutil.disk_usage(folder)
    found = f"{folder.absolute()} ({file_system(folder)}): {amount(usage.free)} free"
    if usage.free < LITTLE:
        return Finding(what, found, "note", "free space, or name another folder")
    return Finding(what, found, "note" if unset else "ok", unset)


def file_system(folder: Path) -> str:
    """Its kind: ext4, nfs4, lustre, …"""
    place = folder.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[path] for path in (place, *place.parents) if path in mounts), "unknown")


def _speed(what: str, trial: Path) -> Finding:
    """Of one file that is flushed to the disk, as a checkpoint is."""
    contents, began = os.urandom(2**20), time.perf_counter()
    with (trial / "speed").open("wb") as file:
        for _ in range(TRIAL // len(contents)):
            file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    rate = TRIAL / (time.perf_counter() - began)
    (trial / "speed").unlink()
    if rate < SLOW:
        advice = "checkpoints take long: save less often (save.every)"
        return Finding(what, f"{amount(rate)}/s", "note", advice)
    return Finding(what, f"{amount(rate)}/s")


def _renames(trial: Path) -> Finding:
    """Whether a file can replace another and its folder be flushed: checkpoints rely on both."""
    old, new = trial / "old", trial / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    new.replace(old)
    handle = os.open(trial, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    if old.read_bytes() != b"new" or new.exists():
        advice = "checkpoints are not safe on this file system: choose another log.folder"
        return Finding("run folders: renames", "a file does not replace another", "broken", advice)
    return Finding("run folders: renames", "whole or not at all; folders can be flushed")


def _locks(trial: Path) -> Finding:
    """Hard links keep two processes out of one run folder, `flock` out of one staged copy."""
    first = trial / "first"
    first.touch()
    (trial / "second").hardlink_to(first)
    with contextlib.suppress(FileExistsError):
        (trial / "second").hardlink_to(first)
        return Finding("run folders: locks", "links replace files", "broken", "choose another disk")
    try:
        with FileLock(trial / "lock"), contextlib.suppress(Timeout):
            FileLock(trial / "lock", is_singleton=False).acquire(timeout=0)
            advice = "flock has no effect here: set data.stage to a folder on another disk"
            return Finding("run folders: locks", "flock keeps nobody out", "note", advice)
    except (OSError, NotImplementedError) as error:
        return Finding("run folders: locks", f"no flock ({error})", "note", "stage data elsewhere")
    return Finding("run folders: locks", "hard links and flock work")


def _time(trial: Path) -> Finding:
    """How far the clock of the file system is from this machine's."""
    file = trial / "time"
    before = time.time()
    file.touch()
    after, stamp = time.time(), file.stat().st_mtime
    skew = max(before - stamp, stamp - after, 0.0)
    found = f"{skew:.1f} s from this machine's clock"
    if skew > SKEW:
        advice = "have both set by NTP: the age of a lock is told by these clocks"
        return Finding("run folders: clock", found, "note", advice)
    return Finding("run folders: clock", found)
