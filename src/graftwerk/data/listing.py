"""From the files found in archives to the splits, classes and columns of an index."""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graftwerk.data.folder import VAL_NAMES
from graftwerk.data.names import IMG_EXTENSIONS, natural_key
from graftwerk.errors import DataError

SPLIT = re.compile(r"(?<![a-z])(train|val|validation|test)(?:ing)?(?![a-z])")
"""In a folder's or archive's name that tells its split, such as imagenet21k_train."""
EXTENSIONS = tuple(extension.encode() for extension in IMG_EXTENSIONS)
MOST = 5
"""So many problems of one kind are named."""


@dataclass
class Listing:
    """Images as they are found: where each lies, and in which folder of which archive."""

    base: Path
    """The folder that the archives are named from: names of folders above it tell nothing."""
    archives: Sequence[Path]
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    deflated: array[int] = field(default_factory=lambda: array("B"))
    folder_of: array[int] = field(default_factory=lambda: array("q"))
    names: list[bytes] = field(default_factory=list[bytes])
    folders: dict[tuple[int, bytes], int] = field(default_factory=dict[tuple[int, bytes], int])
    """The number of each (archive's number, folder's path)."""

    def add(self, archive: int, files: Iterable[tuple[bytes, int, int]]) -> None:
        """Take in (path, offset, size) of the files of an archive; what is no image is left out."""
        for path, offset, size in files:
            if is_image(path):
                self.put(archive, path, offset, size)

    def put(
        self, archive: int, path: bytes, offset: int, size: int, deflated: bool = False
    ) -> None:
        folder, _, name = path.rpartition(b"/")
        key = archive, folder
        number = self.folders.get(key)
        if number is None:
            number = self.folders[key] = len(self.folders)
        self.folder_of.append(number)
        self.offsets.append(offset)
        self.sizes.append(size)
        self.deflated.append(deflated)
        self.names.append(name)

    def index(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(facts, columns) of the index; images in the order in which folders are listed.

        The class is the last folder of a path. Any folder before it, or the archive's own name,
        may tell the split; without one, all images are to train on. The training images decide
        which classes there are.

        Raises:
            DataError: naming what is wrong, with the archive and the offset.
        """
        if not self.names:
            raise DataError(
                f"{', '.join(map(str, self.archives[:MOST]))}: no images ({_extensions()})"
            )
        splits, classes, target_of_folder, split_of_folder = self._classes()
        folder_of = np.frombuffer(self.folder_of, dtype=np.int64)
        rank = np.lexsort((target_of_folder[folder_of], split_of_folder[folder_of]))
        rank = rank[split_of_folder[folder_of[rank]] < len(splits)]
        order = self._by_name(rank, target_of_folder[folder_of], split_of_folder[folder_of])
        chosen = folder_of[order]
        archive_of_folder = np.array([archive for archive, _ in self.folders], dtype=np.uint16)
        columns = {
            "offset": np.frombuffer(self.offsets, dtype=np.int64)[order],
            "size": whole_sizes(np.frombuffer(self.sizes, dtype=np.uint64)[order]),
            "archive": archive_of_folder[chosen],
            "target": target_of_folder[chosen].astype(np.int32),
            **self._paths(order),
        }
        deflated = np.frombuffer(self.deflated, dtype=np.uint8)[order]
        if deflated.any():
            columns["deflated"] = deflated
        counts = np.bincount(split_of_folder[chosen], minlength=len(splits)).tolist()
        facts = {"classes": classes, "splits": dict(zip(splits, counts, strict=True))}
        return facts, columns

    # ------------------------------------------------------------ splits and classes

    def _classes(self) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
        """(splits, classes, class of each folder, split of each folder; past the last: unused)."""
        places = [self._place(*key) for key in self.folders]
        present = {split for split, _ in places}
        val = next((name for name in VAL_NAMES if name in present), None)
        if val and "train" not in present:
            raise DataError(
                f"{self.archives[0]}: has images of {val} and none to train on; name the "
                "training images' folder or archive train"
            )
        if "train" in present and "" in present:
            folders = zip(self.folders, places, strict=True)
            stray = next(folder for folder, (split, _) in folders if not split)
            raise DataError(
                f"{self._shown(*stray)}: neither part of train nor of a split to validate on"
            )
        splits = [name for name in ("train" if "train" in present else "", val) if name is not None]
        self._check_names(places)
        train = {name for split, name in places if split == splits[0]}
        classes = sorted(train, key=lambda name: (natural_key(name), name))
        number = {name: position for position, name in enumerate(classes)}
        used = [(split in splits, name) for split, name in places]
        unknown = sorted({name for is_used, name in used if is_used and name not in number})
        problems: list[str] = []
        if unknown:
            problems.append(
                f"{self.archives[0]}: the training images have no class {_some(unknown)}, "
                f"but those of {val} do"
            )
        if len(classes) == 1:
            problems.append(
                f"{self.archives[0]}: there is only one class ({classes[0]!r}); a classifier "
                "needs at least two"
            )
        if problems:
            raise DataError("\n".join(problems))
        targets = np.array([number.get(name, -1) for _, name in places])
        split_numbers = [splits.index(s) if s in splits else len(splits) for s, _ in places]
        return [name or "train" for name in splits], classes, targets, np.array(split_numbers)

    def _place(self, archive: int, folder: bytes) -> tuple[str, str]:
        """(split, class) of a folder in an archive; the split is empty where nothing tells it."""
        *parents, name = folder.decode(errors="surrogateescape").split("/")
        return split_told_by([*self.archives[archive].relative_to(self.base).parts, *parents]), name

    def _check_names(self, places: list[tuple[str, str]]) -> None:
        """Every image stands in a class folder, and no two folders of an archive share a class."""
        seen: dict[tuple[int, str, str], bytes] = {}
        flat = {name for _, name in places} <= {"train", *VAL_NAMES}
        for (archive, folder), (split, name) in zip(self.folders, places, strict=True):
            if not name or flat:
                raise DataError(
                    f"{self._shown(archive, folder)}: images that lie in no class folder; each "
                    "belongs into a folder named after its class"
                )
            other = seen.setdefault((archive, split, name), folder)
            if other != folder:
                raise DataError(
                    f"{self.archives[archive]}: the folders {other.decode()!r} and "
                    f"{folder.decode()!r} would be one class {name!r}; give them different names"
                )

    def _shown(self, archive: int, folder: bytes) -> str:
        """The first image of a folder, by archive, path and offset."""
        first = self.folder_of.index(self.folders[archive, folder])
        path = b"/".join([folder, self.names[first]]).lstrip(b"/").decode(errors="replace")
        return f"{self.archives[archive]}: {path} (at byte {self.offsets[first]:,})"

    # ------------------------------------------------------------ order

    def _by_name(self, rank: np.ndarray, targets: np.ndarray, splits: np.ndarray) -> np.ndarray:
        """`rank` with the images of each class in the order of their names, all different."""
        names = self.names
        group = np.stack([splits[rank], targets[rank]])
        (starts,) = np.nonzero(np.any(np.diff(group, prepend=-1) != 0, axis=0))
        ordered: list[int] = []
        for members in np.split(rank, starts[1:]):
            part: list[int] = sorted(members.tolist(), key=names.__getitem__)
            for one, other in itertools.pairwise(part):
                if names[one] == names[other]:
                    raise DataError(self._twice(one, other))
            ordered += part
        return np.array(ordered, dtype=np.int64)

    def _twice(self, one: int, other: int) -> str:
        keys = list(self.folders)
        where = [
            f"{self.archives[keys[self.folder_of[i]][0]]} (at byte {self.offsets[i]:,})"
            for i in (one, other)
        ]
        path = b"/".join([keys[self.folder_of[one]][1], self.names[one]]).decode(errors="replace")
        return f"{path} is there twice: {where[0]} and {where[1]}; keep one of them"

    def _paths(self, order: np.ndarray) -> dict[str, np.ndarray]:
        keys = [folder for _, folder in self.folders]
        paths = [keys[self.folder_of[i]] + b"/" + self.names[i] for i in order.tolist()]
        ends = np.cumsum(np.fromiter(map(len, paths), dtype=np.int64, count=len(paths)))
        return {"names": np.frombuffer(b"".join(paths), dtype=np.uint8), "name_end": ends}


def is_image(path: bytes) -> bool:
    return path.lower().endswith(EXTENSIONS) and not path.rpartition(b"/")[2].startswith(b".")


def split_told_by(parts: Iterable[str]) -> str:
    """The split in the first of the names that tells one, else nothing."""
    for part in parts:
        told = set(SPLIT.findall(part.lower()))
        if len(told) == 1:
            return told.pop()
    return ""


def whole_sizes(sizes: np.ndarray) -> np.ndarray:
    if len(sizes) and int(sizes.max()) >= 1 << 32:
        raise DataError(f"a file of {int(sizes.max()):,} bytes is no image")
    return sizes.astype(np.uint32)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(repr(name) for name in names[:MOST]) + more


def _extensions() -> str:
    return ", ".join(IMG_EXTENSIONS)
