"""`graftwerk data`: pack, inspect, verify and stage a data set, and measure its loader."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from graftwerk.errors import DONE, USER_ERROR, DataError

if TYPE_CHECKING:
    from graftwerk.data.config import Data
    from graftwerk.data.source import Splits

SHOWN = 20
"""Problems that are named; all are counted."""


def add_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        function: Callable[[argparse.Namespace], int], help: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            function.__name__, help=help, description=f"{help}.", allow_abbrev=False
        )
        sub.set_defaults(act=function)
        sub.add_argument("path", type=Path, help="a folder, an archive or an HDF5 file")
        sub.add_argument("--kind", help="as in data=KIND; found out where it is not given")
        sub.add_argument(
            "--workers", type=_from(0), help="processes; as many as cores if not given"
        )
        return sub

    sub = command(pack, "write a data set as one archive per split, or as one HDF5 file")
    sub.add_argument("to", type=Path, help="a new folder")
    sub.add_argument("--format", choices=("tar", "hdf5"), default="tar")
    sub.add_argument("--max-side", type=_from(1), help="shrink larger images to this longer side")
    sub.add_argument(
        "--encode", choices=("jpeg", "raw"), help="all images anew; raw: pixels, as PPM"
    )
    sub.add_argument("--quality", type=_from(1, 100), default=90, help="of JPEG")
    sub.add_argument("--on-error", choices=("fail", "skip"), default="fail")
    command(inspect, "say what a data set holds")
    command(verify, "compare a data set with its manifest and decode every image")
    sub = command(stage, "copy a data set to the node's own disk, or find the copy there")
    sub.add_argument("--to", default="auto", help="auto: SLURM_TMPDIR or TMPDIR")
    sub = command(bench, "measure images per second of the training loader")
    sub.add_argument("--size", type=_from(1), default=224)
    sub.add_argument("--images", type=_from(1), default=512)


def _from(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """Whole numbers of an option."""

    def number(word: str) -> int:
        value = int(word)
        if value < lowest or (highest is not None and value > highest):
            least = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
            raise argparse.ArgumentTypeError(f"should be {least} (got {value})")
        return value

    return number


def described(path: Path, kind: str | None) -> Data:
    """The config of the data at `path`; its kind is told by what lies there."""
    from graftwerk.config import load
    from graftwerk.data.config import Data
    from graftwerk.data.detect import kind_of

    return load(Data, {"kind": kind or kind_of(path), "path": path})


@contextmanager
def _progress(
    title: str, total: int, *, of_bytes: bool = False
) -> Generator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    amount = DownloadColumn() if of_bytes else MofNCompleteColumn()
    columns = (TextColumn(title), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


def _workers(options: argparse.Namespace) -> int:
    from graftwerk.data.workers import default_workers

    return default_workers(1) if options.workers is None else options.workers


def _images(splits: Splits) -> int:
    return len(splits.train) + len(splits.val)


def _outside(source: Path, target: Path) -> None:
    """A copy within the data set would be taken for a part of it."""
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{target}: lies within {source}; name a folder elsewhere")


def _told(problems: Sequence[str]) -> None:
    for problem in problems[:SHOWN]:
        print(problem)
    if len(problems) > SHOWN:
        print(f"and {len(problems) - SHOWN} more")


def pack(options: argparse.Namespace) -> int:
    from graftwerk.data.pack import Recode
    from graftwerk.data.pack import pack as pack_splits

    _outside(options.path, options.to)
    recode = Recode(options.max_side, options.encode, options.quality, options.on_error)
    splits = described(options.path, options.kind).open(0)
    with _progress("packing", _images(splits)) as on_images:
        report = pack_splits(
            splits,
            options.to,
            options.format,
            recode,
            workers=_workers(options),
            on_images=on_images,
        )
    _told(report.problems)
    left_out = f", {len(report.problems):,} left out" if report.problems else ""
    print(f"{report.images:,} images of {len(splits.classes):,} classes in {options.to}{left_out}")
    path = options.to / "data.h5" if options.format == "hdf5" else options.to
    print(f"train on them with data={options.format} data.path={path}")
    return DONE


def inspect(options: argparse.Namespace) -> int:
    import numpy as np

    data = described(options.path, options.kind)
    splits = data.open(0)
    print(f"data={data.kind} data.path={options.path}")
    if not splits.classes:
        print(f"train  {len(splits.train):,} images without classes, from {splits.train.name(0)}")
        print(f"val    {len(splits.val):,} images without classes, from {splits.val.name(0)}")
        return DONE
    for name, source in (("train", splits.train), ("val", splits.val)):
        counts = np.bincount(source.targets, minlength=len(splits.classes))
        print(
            f"{name:6} {len(source):,} images, {counts.min():,} to {counts.max():,} a class, "
            f"from {source.name(0)}"
        )
    shown = ", ".join(splits.classes[:5]) + (" …" if len(splits.classes) > 5 else "")
    print(f"{len(splits.classes):,} classes: {shown}")
    return DONE


def verify(options: argparse.Namespace) -> int:
    from graftwerk.data import manifest
    from graftwerk.data.verify import damaged_images

    folder = options.path if options.path.is_dir() else options.path.parent
    entries = manifest.read(folder)
    problems: list[str] = []
    with _progress("checksums", sum(e.size for e in entries), of_bytes=True) as on_bytes:
        for entry in entries:
            problems += manifest.problems(folder, entry, on_bytes)
    images = 0
    try:
        splits = described(options.path, options.kind).open(0)
        images = _images(splits)
        with _progress("images", images) as on_images:
            problems += damaged_images(splits, _workers(options), on_images)
    except DataError as error:
        problems.append(str(error))
    _told(problems)
    against = f"{len(entries)} files of the manifest" if entries else "no manifest there"
    print(f"{images:,} images and {against}: {len(problems):,} problems")
    return USER_ERROR if problems else DONE


def stage(options: argparse.Namespace) -> int:
    from graftwerk.data import staging

    disk = staging.local_disk(options.to)
    if disk is None:
        raise DataError(f"--to: none of {', '.join(staging.DISKS)} is set; name a folder")
    _outside(options.path, disk)
    size = staging.list_files(options.path).size
    with _progress("staging", size, of_bytes=True) as on_bytes:
        print(staging.stage(options.path, disk, on_bytes))
    return DONE


def bench(options: argparse.Namespace) -> int:
    from graftwerk.data.bench import loader_speed

    splits = described(options.path, options.kind).open(0)
    for workers in sorted({0, 1, _workers(options)}):
        speed = loader_speed(splits.train, options.size, options.images, workers)
        print(f"{workers} workers: {speed:,.0f} images/s")
    return DONE
