"""What kind of data lies at a path."""

from __future__ import annotations

from pathlib import Path

from graftwerk.errors import DataError

ARCHIVES = {".tar": "tar", ".zip": "zip", ".h5": "hdf5", ".hdf5": "hdf5"}


def kind_of(path: Path) -> str:
    """The `data` kind that reads what lies there.

    Raises:
        DataError: nothing that is known.
    """
    if "{" in path.name:
        return "shards"
    if path.suffix in ARCHIVES:
        return ARCHIVES[path.suffix]
    if not path.is_dir():
        raise DataError(
            f"{path}: no folder, archive or HDF5 file; name one, or say what it is (--kind, data=)"
        )
    if (path / "_info.json").exists():
        return "shards"
    if (path / "state.json").exists() or (path / "train" / "state.json").exists():
        return "huggingface"
    archives = (ARCHIVES[p.suffix] for p in path.iterdir() if p.suffix in (".tar", ".zip"))
    return next(archives, "folder")
