"""Images in one HDF5 file.

Two layouts. Ours has a group per split, ``train`` and ``val``, with all encoded images one after
another in one contiguous data set, which is read by offset like an archive, without the HDF5
library and its locks:

    bytes uint8, offsets [n + 1] int64, targets [n] int32, crc32 [n] uint32, names [n] text;
    the attribute ``classes`` of the file is their JSON list

The other holds ``encoded_images`` [n], each a variable-length row of uint8, and ``targets`` [n] or
[n, 1], with the splits one after another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from graftwerk.data import manifest
from graftwerk.data.archives import indexed
from graftwerk.data.listing import whole_sizes
from graftwerk.data.source import Part, Splits, stratified_split
from graftwerk.errors import DataError

EXTENSIONS = (".h5", ".hdf5")
IMAGES, TARGETS = "encoded_images", "targets"
IMAGENET_SPLITS = (1_281_167, 50_000, 100_000)
"""Images to train on, to validate on, and of the test set."""
COLUMNS = ("bytes", "offsets", "targets", "crc32", "names")


def open_hdf5(path: Path, splits: tuple[int, ...] | None, holdout: float, seed: int) -> Splits:
    """The images of an HDF5 file of either layout.

    `splits` are the lengths of the parts to train on and to validate on, in the layout without
    groups; ImageNet's are known by their sum. Else the share `holdout` of each class is held out.

    Raises:
        DataError: naming the file and the data set in it that is wrong.
    """
    path = _file(path.expanduser())
    with opened(path) as file:
        grouped = "train" in file
    if grouped:
        return indexed(path.parent, path.name, [path], "hdf5", lambda: _index(path), holdout, seed)
    targets = _checked_targets(path)
    if splits is None and len(targets) == sum(IMAGENET_SPLITS):
        splits = IMAGENET_SPLITS
    if splits is None:
        kept, held_out = stratified_split(targets, holdout, seed)
    elif len(splits) < 2 or sum(splits) > len(targets):
        raise DataError(
            f"{path}: data.splits needs the lengths of a part to train on and one to validate on, "
            f"together at most {len(targets):,} (got {', '.join(map(str, splits))})"
        )
    else:
        kept, held_out = np.split(np.arange(splits[0] + splits[1]), [splits[0]])
    _check_range(path, targets, kept, held_out)
    source = RowsSource(path, targets)
    classes = tuple(str(number) for number in range(int(targets[kept].max()) + 1))
    return Splits(Part(source, kept), Part(source, held_out), classes)


def write(
    path: Path, classes: Sequence[str], parts: Sequence[tuple[str, Path, Sequence[Sequence[Any]]]]
) -> None:
    """Our layout, of parts (split, its images' bytes, their (size, crc32, name, target))."""
    temporary = path.with_name(f".{path.name}.partial")
    with h5py().File(temporary, "w") as file:
        file.attrs["classes"] = json.dumps(list(classes))
        for split, encoded, rows in parts:
            group = file.create_group(split)
            sizes, checksums, names, targets = zip(*rows, strict=True) if rows else ((),) * 4
            group["offsets"] = np.cumsum([0, *sizes], dtype=np.int64)
            group["crc32"] = np.array(checksums, dtype=np.uint32)
            group["targets"] = np.array(targets, dtype=np.int32)
            text = h5py().string_dtype()
            group.create_dataset("names", data=[os.fsencode(n) for n in names], dtype=text)
            images = group.create_dataset("bytes", (sum(sizes),), np.uint8)
            start = 0
            for block in manifest.read_blocks(encoded):
                images[start : start + len(block)] = np.frombuffer(block, np.uint8)
                start += len(block)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)


@dataclass(frozen=True)
class RowsSource:
    """Rows of variable length; each process opens the file for itself when it first reads."""

    path: Path
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> tuple[bytes, int]:
        try:
            return self._rows(os.getpid())[index].tobytes(), int(self.targets[index])
        except (OSError, RuntimeError, KeyError) as error:
            raise DataError(f"{self.name(index)}: can't be read ({error})") from None

    def name(self, index: int) -> str:
        return f"{self.path}: {IMAGES}[{index}]"

    def _rows(self, process: int) -> Any:
        """A handle is not shared with forked processes, which would read past each other."""
        if process not in self._handles:
            self._handles[process] = h5py().File(self.path, "r")[IMAGES]
        return self._handles[process]

    @cached_property
    def _handles(self) -> dict[int, Any]:
        return {}

    def __reduce__(self) -> tuple[object, ...]:
        return RowsSource, (self.path, self.targets)


def _file(path: Path) -> Path:
    """`path`, or the one HDF5 file in the folder `path`."""
    if not path.is_dir():
        return path
    found = sorted(file for file in path.iterdir() if file.suffix in EXTENSIONS)
    if len(found) != 1:
        raise DataError(f"{path}: holds {len(found)} HDF5 files; set data.path to one")
    return found[0]


@contextmanager
def opened(path: Path) -> Generator[Any]:
    """The file, open to read; raises `DataError` where it is none."""
    try:
        file = h5py().File(path, "r")
    except OSError as error:
        if not path.exists():
            raise DataError(f"{path}: no such file; set data.path") from None
        raise DataError(f"{path}: is no intact HDF5 file ({error}); get it again") from None
    with file:
        yield file


def h5py() -> Any:
    try:
        import h5py as library
    except ImportError:
        raise DataError("data=hdf5 needs the extra hdf5: pip install 'graftwerk[hdf5]'") from None
    return library


def _checked_targets(path: Path) -> np.ndarray:
    """`targets` [n] of the layout without groups, one for each image and all numbers of classes."""
    with opened(path) as file:
        missing = [name for name in (IMAGES, TARGETS) if name not in file]
        if missing:
            raise DataError(
                f"{path}: has neither the group train nor {' and '.join(missing)}; "
                "`graftwerk data pack` writes such a file"
            )
        images, targets = file[IMAGES], file[TARGETS]
        if h5py().check_vlen_dtype(images.dtype) != np.uint8 or images.ndim != 1:
            raise DataError(f"{path}: {IMAGES} should be rows of uint8, and is {images.dtype}")
        if targets.dtype.kind not in "iu" or targets.size != len(targets):
            raise DataError(f"{path}: {TARGETS} should be integers [n] or [n, 1]")
        if len(images) != len(targets):
            raise DataError(
                f"{path}: {len(images):,} {IMAGES}, but {len(targets):,} {TARGETS}; "
                "which belongs to which can't be known"
            )
        return targets[:].reshape(-1).astype(np.int32)


def _check_range(path: Path, targets: np.ndarray, train: np.ndarray, val: np.ndarray) -> None:
    if len(train) and targets[train].min() < 0:
        raise DataError(f"{path}: {TARGETS}[{train[targets[train].argmin()]}] is below 0")
    highest = targets[train].max(initial=-1)
    bad = val[(targets[val] > highest) | (targets[val] < 0)]
    if len(bad):
        raise DataError(
            f"{path}: {TARGETS}[{bad[0]}] is {targets[bad[0]]}, and the training images have "
            f"classes 0 to {highest}; is data.splits right?"
        )
    if highest < 1:
        raise DataError(f"{path}: all {TARGETS} are 0; a classifier needs two classes")


def _index(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(facts, columns) of the index of a file in our layout."""
    with opened(path) as file:
        classes = json.loads(file.attrs["classes"])
        splits = [name for name in ("train", "val") if name in file]
        parts = [_columns(path, name, file[name], len(classes)) for name in splits]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    names = columns.pop("names")
    columns["name_end"] = np.cumsum([len(name) for name in names], dtype=np.int64)
    columns["names"] = np.frombuffer(b"".join(names), dtype=np.uint8)
    counts = [len(part["offset"]) for part in parts]
    return {"classes": classes, "splits": dict(zip(splits, counts, strict=True))}, columns


def _columns(path: Path, split: str, group: Any, num_classes: int) -> dict[str, np.ndarray]:
    missing = [name for name in COLUMNS if name not in group]
    if missing:
        raise DataError(f"{path}: the group {split} has no {', '.join(missing)}")
    offsets, targets = group["offsets"][:], group["targets"][:]
    start = group["bytes"].id.get_offset()
    lengths = {name: len(group[name]) for name in ("targets", "crc32", "names")}
    if set(lengths.values()) != {len(offsets) - 1} or len(group["bytes"]) != offsets[-1]:
        raise DataError(f"{path}: the columns of {split} are of different lengths ({lengths})")
    if start is None or group["bytes"].dtype != np.uint8:
        raise DataError(f"{path}: {split}/bytes should be one contiguous row of uint8")
    if np.any(np.diff(offsets) < 0) or offsets[0] != 0:
        raise DataError(f"{path}: {split}/offsets should rise from 0")
    wrong = np.flatnonzero((targets < 0) | (targets >= num_classes))
    if len(wrong):
        raise DataError(
            f"{path}: {split}/targets[{wrong[0]}] is {targets[wrong[0]]}, of {num_classes} classes"
        )
    return {
        "offset": start + offsets[:-1],
        "size": whole_sizes(np.diff(offsets).astype(np.uint64)),
        "archive": np.zeros(len(targets), dtype=np.uint16),
        "target": targets.astype(np.int32),
        "crc32": group["crc32"][:].astype(np.uint32),
        "names": group["names"][:],
    }
