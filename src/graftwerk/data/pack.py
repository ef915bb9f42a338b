"""A data set of any format in one archive per split, or in one HDF5 file.

JPEG files that are written here have restart markers, so that a crop can be decoded by itself
(`jpeg`): every few units of 16 pixels, which makes them about 2 % larger. Small ones have none.

Images are written in their order by one process while others encode; what is written carries its
checksums. A pack that was interrupted goes on where its journal says it was.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from PIL import Image

from graftwerk.data import hdf5, manifest
from graftwerk.data.decode import decode, opened
from graftwerk.data.names import IMG_EXTENSIONS
from graftwerk.data.source import Source, Splits
from graftwerk.data.workers import processes
from graftwerk.errors import DataError

CHUNK = 64
"""Images that a process encodes at a time; the journal grows with each."""
AHEAD = 4
"""Chunks under way per process."""
UNIT = 16
"""Pixels to a side of what JPEG encodes together where chroma is halved."""
INTERVALS = (3, 2, 1)
SMALL = 320 * 320
"""Pixels of images without restart markers."""
OnImages = Callable[[int], None]


@dataclass(frozen=True)
class Recode:
    """How images are stored; unset means the bytes as they are."""

    max_side: int | None = None
    """Larger images are shrunk until their longer side has so many pixels."""
    encode: Literal["jpeg", "raw"] | None = None
    """All images anew; `raw` is PPM or PGM: a short header and the pixels."""
    quality: int = 90
    on_error: Literal["fail", "skip"] = "fail"


@dataclass
class Report:
    images: int = 0
    problems: list[str] = field(default_factory=list[str])


def pack(
    splits: Splits,
    target: Path,
    format: Literal["tar", "hdf5"],
    recode: Recode,
    *,
    workers: int,
    on_images: OnImages = lambda _: None,
) -> Report:
    """Write `splits` as ``train.tar`` and ``val.tar``, or as ``data.h5``, with a manifest.

    Raises:
        DataError: an image can't be read, the images have no classes, or `target` holds a data set.
    """
    if not splits.classes:
        raise DataError(f"{splits.train.name(0)}: has no class; only labelled images are packed")
    if (target / manifest.NAME).exists():
        raise DataError(f"{target}: a packed data set is there already; name another folder")
    target.mkdir(parents=True, exist_ok=True)
    report = Report()
    parts = {"train": splits.train, "val": splits.val}
    packed: list[_Part] = []
    for name, source in parts.items():
        part = _Part(name, source, splits.classes, target, format, recode)
        part.write(workers, report, on_images)
        packed.append(part)
    if format == "hdf5":
        rows = [(part.name, part.partial, list(part.rows())) for part in packed]
        hdf5.write(target / "data.h5", splits.classes, rows)
        names = ["data.h5"]
    else:
        names = [f"{part.name}.tar" for part in packed]
        for part, name in zip(packed, names, strict=True):
            part.partial.replace(target / name)
    manifest.write(target, [manifest.describe(target, name) for name in names])
    for part in packed:
        part.clean()
    return report


def recoded(raw: bytes | Image.Image, recode: Recode) -> tuple[bytes, str]:
    """(bytes, extension) of an image; those of a file that need no change are left as they are.

    What is no file but pixels stays pixels. Raises `DataError` where it can't be decoded.
    """
    image = opened(raw) if isinstance(raw, bytes) else raw
    pixels = decode(image, "grey" if image.mode in ("1", "L", "I;16") else "rgb")
    longest = recode.max_side or max(image.size)
    too_large = max(image.size) > longest
    if isinstance(raw, bytes) and recode.encode is None and not too_large:
        return raw, extension(image.format)
    if too_large:
        pixels.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if recode.encode == "raw" or not (recode.encode or too_large):
        pixels.save(buffer, "PPM")
        return buffer.getvalue(), ".pgm" if pixels.mode == "L" else ".ppm"
    pixels.save(
        buffer,
        "JPEG",
        quality=recode.quality,
        optimize=True,
        restart_marker_blocks=restart_interval(*pixels.size),
    )
    return buffer.getvalue(), ".jpg"


def extension(format: str | None) -> str:
    """By which readers of folders and archives know that a file is an image, whatever is in it."""
    usual = f".{format}".lower()
    return usual if usual in IMG_EXTENSIONS and format != "JPEG" else ".jpg"


def restart_interval(width: int, height: int) -> int:
    """Units between restart markers: few, and so many that they divide those of a row.

    0, none, in a small image: it is decoded in less time than a part is put together.
    """
    if width * height < SMALL:
        return 0
    units = -(-width // UNIT)
    return next(n for n in INTERVALS if units % n == 0)


Packed = tuple[bytes, str] | str
"""(bytes, extension), or what is wrong."""


def _recode_chunk(source: Source, recode: Recode, chunk: range) -> list[Packed]:
    return [_recode_one(source, recode, index) for index in chunk]


def _recode_one(source: Source, recode: Recode, index: int) -> Packed:
    try:
        raw, _ = source.read(index)
    except DataError as error:
        return str(error)
    if not isinstance(raw, bytes | Image.Image):
        return f"{source.name(index)}: is a row of numbers; only images are packed"
    try:
        return recoded(raw, recode)
    except Exception as error:  # Pillow's readers raise all sorts of exceptions on broken files
        return f"{source.name(index)}: {error}"


@dataclass
class _Part:
    """One split on its way into ``NAME.tar.partial`` or, for HDF5, ``NAME.bytes.partial``."""

    name: str
    source: Source
    classes: tuple[str, ...]
    folder: Path
    format: str
    recode: Recode

    @property
    def partial(self) -> Path:
        return self.folder / f"{self.name}.{'tar' if self.format == 'tar' else 'bytes'}.partial"

    @property
    def journal(self) -> Path:
        """A line for each chunk: images done, bytes written, [size, crc, name, target] of each."""
        return self.folder / f"{self.name}.journal.partial"

    def write(self, workers: int, report: Report, on_images: OnImages) -> None:
        done, length, report_lines = self._resume()
        report.problems += report_lines
        report.images += done - len(report_lines)
        on_images(done)
        with self.partial.open("r+b" if self.partial.exists() else "w+b") as file:
            file.truncate(length)
            file.seek(length)
            for start, results in self._results(done, workers):
                rows, problems = self._append(file, start, results)
                report.problems += problems
                report.images += len(rows)
                file.flush()
                os.fsync(file.fileno())
                entry = [start + len(results), file.tell(), rows, problems]
                with self.journal.open("a") as journal:
                    journal.write(json.dumps(entry) + "\n")
                on_images(len(results))
            if self.format == "tar":
                file.write(bytes(2 * tarfile.BLOCKSIZE))

    def rows(self) -> Iterator[list[Any]]:
        """(size, crc32, name, target) of each image that was written."""
        if self.journal.exists():
            with self.journal.open() as journal:
                next(journal)
                for line in journal:
                    yield from json.loads(line)[2]

    def clean(self) -> None:
        for path in (self.partial, self.journal):
            path.unlink(missing_ok=True)

    def _resume(self) -> tuple[int, int, list[str]]:
        """(images done, bytes written, problems met) according to the journal of the same job."""
        job = json.dumps(
            [len(self.source), self.format, asdict(self.recode), self._first_and_last()]
        )
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        if not lines or lines[0] != job or not self.partial.exists():
            self.clean()
            self.journal.write_text(job + "\n")
            return 0, 0, []
        whole: list[list[Any]] = []
        for line in lines[1:]:
            try:
                whole.append(json.loads(line))
            except ValueError:  # the last line of a process that was killed
                break
        self.journal.write_text("\n".join([job, *map(json.dumps, whole)]) + "\n")
        if not whole:
            return 0, 0, []
        return whole[-1][0], whole[-1][1], [p for entry in whole for p in entry[3]]

    def _first_and_last(self) -> list[str]:
        return [self.source.name(i) for i in (0, len(self.source) - 1)] if len(self.source) else []

    def _results(self, done: int, workers: int) -> Iterator[tuple[int, list[Packed]]]:
        chunks = [
            range(start, min(start + CHUNK, len(self.source)))
            for start in range(done, len(self.source), CHUNK)
        ]
        work = partial(_recode_chunk, self.source, self.recode)
        if workers == 0:
            yield from ((chunk.start, work(chunk)) for chunk in chunks)
            return
        waiting = iter(chunks)
        with processes(workers) as pool:

            def submit(count: int) -> list[tuple[range, Future[list[Packed]]]]:
                return [(c, pool.submit(work, c)) for c in itertools.islice(waiting, count)]

            running = submit(AHEAD * workers)
            while running:
                chunk, future = running.pop(0)
                yield chunk.start, future.result()
                running += submit(1)

    def _append(
        self, file: io.BufferedRandom, start: int, results: list[Packed]
    ) -> tuple[list[list[Any]], list[str]]:
        rows: list[list[Any]] = []
        problems: list[str] = []
        for index, result in enumerate(results, start=start):
            if isinstance(result, str):
                if self.recode.on_error == "fail":
                    raise DataError(f"{result}\nmend or remove it, or pack with --on-error skip")
                problems.append(result)
                continue
            raw, extension = result
            target = int(self.source.targets[index])
            name = f"{self._folder(target)}/{self._stem(index)}{extension}"
            if self.format == "tar":
                entry = tarfile.TarInfo(name)
                entry.size = len(raw)
                file.write(entry.tobuf(tarfile.GNU_FORMAT))
                file.write(raw)
                file.write(bytes(-len(raw) % tarfile.BLOCKSIZE))
            else:
                file.write(raw)
            rows.append([len(raw), zlib.crc32(raw), name, target])
        return rows, problems

    def _folder(self, target: int) -> str:
        return self.classes[target].replace("/", "_") if self.classes else "images"

    def _stem(self, index: int) -> str:
        """The place in the order first, so that names sort as images stand; then the old name."""
        path, _, _ = self.source.name(index).partition(" (at byte ")
        return f"{index:08}_{PurePosixPath(path).stem.replace('[', '_').replace(']', '')}"
