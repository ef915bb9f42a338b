"""Image files in class folders, as torchvision's and timm's ImageFolder, or without classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graftwerk.data.names import IMG_EXTENSIONS, natural_key
from graftwerk.data.source import Splits, stratified_split
from graftwerk.errors import DataError

VAL_NAMES = ("val", "validation", "test")
LIKE_SPLITS = {"train", "training", *VAL_NAMES, "valid", "testing", "dev", "eval"}
"""Folders whose names are all among these are no classes."""
EXTENSIONS = tuple(extension.encode() for extension in IMG_EXTENSIONS)


@dataclass(frozen=True)
class FolderSource:
    """Image files of a folder, listed in arrays: loader processes share them and never copy.

    `files` [n] are paths relative to `folder`, as bytes; `targets` [n] are class numbers.
    """

    folder: Path
    files: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[bytes, int]:
        path = self.path(index)
        try:
            return path.read_bytes(), int(self.targets[index])
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror})") from None

    def name(self, index: int) -> str:
        return str(self.path(index))

    def path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.files[index])

    def part(self, positions: np.ndarray) -> FolderSource:
        return FolderSource(self.folder, self.files[positions], self.targets[positions])


@dataclass(frozen=True)
class Tree:
    """What lies in a folder: the image files of each class folder, and images beside these."""

    folder: Path
    classes: dict[str, list[bytes]]
    stray: int

    def source(self, classes: Iterable[str]) -> FolderSource:
        files = [self.classes.get(name, []) for name in classes]
        targets = np.repeat(np.arange(len(files)), [len(part) for part in files])
        paths = np.array([path for part in files for path in part], dtype=np.bytes_)
        return FolderSource(self.folder, paths, targets)

    def problems(self) -> list[str]:
        if not self.classes and self.stray:
            return [
                f"{self.folder}: {self.stray} images lie directly in it; "
                "put each into a folder named after its class"
            ]
        if not self.classes:
            return [f"{self.folder}: is empty; it needs images as {self.folder}/<class>/<file>"]
        empty = [name for name, files in self.classes.items() if not files]
        if not empty:
            return []
        return [
            f"{self.folder}: no images in class folder {_some(empty)} "
            f"({', '.join(IMG_EXTENSIONS)}); add some or remove the folder"
        ]


def open_folder(path: Path, holdout: float, seed: int) -> Splits:
    """The images below `path`; classes are numbered in natural order (``2`` before ``10``).

    ``train/`` numbers the classes where `path` has one; the other split is the first of ``val/``,
    ``validation/`` and ``test/``. Otherwise `path` itself holds the class folders, and the share
    `holdout` of each class is held out, chosen by `seed`.

    Raises:
        DataError: with a line for every problem, naming the folder and what to do.
    """
    path = path.expanduser()
    train_folder, val_folder = find_splits(path)
    train = list_images(train_folder)
    val = list_images(val_folder) if val_folder else None
    _check(train, val)
    classes = tuple(train.classes)
    source = train.source(classes)
    if val is not None:
        return Splits(source, val.source(classes), classes)
    kept, held_out = stratified_split(source.targets, holdout, seed)
    return Splits(source.part(kept), source.part(held_out), classes)


def open_images(path: Path, holdout: float, seed: int) -> Splits:
    """Every image at any depth below `path`, without classes.

    ``train/`` beside ``val/``, ``validation/`` or ``test/`` are the splits; ``train/`` alone, else
    `path` itself, gives the share `holdout` of its images, chosen by `seed`.

    Raises:
        DataError: names the folder that holds fewer images than are needed.
    """
    path = path.expanduser()
    names = _folders(path)
    train = _unlabelled(path / "train" if "train" in names else path)
    val = next((name for name in VAL_NAMES if name in names and "train" in names), None)
    if val is not None:
        return Splits(train, _unlabelled(path / val), ())
    if len(train) < 2:
        raise DataError(f"{train.folder}: only one image; holding one out needs two")
    kept, held_out = stratified_split(train.targets, holdout, seed)
    return Splits(train.part(kept), train.part(held_out), ())


def _unlabelled(folder: Path) -> FolderSource:
    files = np.array(_images(folder), dtype=np.bytes_)
    if not len(files):
        raise DataError(
            f"{folder}: no images in it ({', '.join(IMG_EXTENSIONS)}); set data.path to a folder "
            "of images"
        )
    return FolderSource(folder, files, np.zeros(len(files), dtype=np.int64))


def find_splits(path: Path) -> tuple[Path, Path | None]:
    """The folders of the training and validation split; None where one folder holds it all."""
    names = _folders(path)
    val = next((name for name in VAL_NAMES if name in names), None)
    only_splits = {"train", *VAL_NAMES}.issuperset(names)
    if "train" in names and (only_splits or _folders(path / "train")):
        if val is None:
            raise DataError(
                f"{path}: has train/ but none of {', '.join(f'{name}/' for name in VAL_NAMES)}; "
                f"add one, or set data.path={path / 'train'} to hold out a part of each class"
            )
        return path / "train", path / val
    if val and only_splits:
        raise DataError(f"{path}: has {val}/ but no train/; add the training images as train/")
    if len(names) > 1 and LIKE_SPLITS.issuperset(name.lower() for name in names):
        raise DataError(
            f"{path}: its folders {_some(sorted(names))} are named like splits, not like classes; "
            "call them train and val"
        )
    return path, None


def list_images(folder: Path) -> Tree:
    """Every image below each class folder of `folder`, at any depth; hidden names don't count."""
    names = sorted(_folders(folder), key=lambda name: (natural_key(name), name))
    with os.scandir(folder) as entries:
        stray = sum(_is_image(os.fsencode(entry.name)) for entry in entries)
    return Tree(folder, {name: _images(folder, name) for name in names}, stray)


def _images(folder: Path, name: str = "") -> list[bytes]:
    """Image files at any depth below the folder `name` of `folder`, as paths from `folder`."""
    root = os.fsencode(folder)
    found: list[bytes] = []
    for parent, folders, files in walk(os.fsencode(folder / name)):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        prefix = b"" if parent == root else parent[len(root) + 1 :] + b"/"
        found += [prefix + file for file in files if _is_image(file)]
    return sorted(found)


def walk(folder: bytes) -> Iterator[tuple[bytes, list[bytes], list[bytes]]]:
    """As `os.walk`, through links.

    Raises:
        DataError: a folder can't be read, or a link leads back to a folder that holds it.
    """
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable):
        for link in (Path(os.fsdecode(parent), os.fsdecode(name)) for name in folders):
            if link.is_symlink() and link.parent.resolve().is_relative_to(link.resolve()):
                raise DataError(
                    f"{link}: a link to {link.resolve()}, which holds it; remove the link"
                )
        yield parent, folders, files


def _folders(path: Path) -> set[str]:
    try:
        with os.scandir(path) as entries:
            return {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}
    except OSError as error:
        _unreadable(error)
        raise


def _unreadable(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        raise DataError(f"{error.filename}: no such folder; set data.path") from None
    if isinstance(error, NotADirectoryError):
        raise DataError(
            f"{error.filename}: is a file; set data.path to a folder (unpack an archive first)"
        ) from None
    raise DataError(f"{os.fsdecode(error.filename)}: can't be read ({error.strerror})") from None


def _is_image(file: bytes) -> bool:
    return file.lower().endswith(EXTENSIONS) and not file.startswith(b".")


def _check(train: Tree, val: Tree | None) -> None:
    problems = train.problems()
    if len(train.classes) == 1:
        problems.append(
            f"{train.folder}: there is only one class ({_some(train.classes)}); a classifier "
            "needs at least two class folders"
        )
    if val is None:
        alone = [name for name, files in train.classes.items() if len(files) == 1]
        if alone:
            problems.append(
                f"{train.folder}: only one image in class folder {_some(alone)}; "
                "holding one out needs two"
            )
    else:
        problems += val.problems()
        unknown = [name for name in val.classes if name not in train.classes]
        if unknown and train.classes:
            problems.append(
                f"{val.folder}: {train.folder.name}/ has no class {_some(unknown)}; "
                "add training images of it, or rename or remove the folder"
            )
    if problems:
        raise DataError("\n".join(problems))


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more
