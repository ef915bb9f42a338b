"""What kind of data lies at a path."""

from __future__ import annotations

from pathlib import Path

from graftwerk.errors import DataError

ARCHIVES = {".tar": "tar", ".zip": "zip", ".h5": "hdf5", ".hdf5": "hdf5"}
COMPRESSED = (".gz", ".tgz", ".xz", ".bz2", ".zst")


def kind_of(path: Path) -> str:
    """The `data` kind that reads what lies there.

    Raises:
        DataError: nothing that is known.
    """
    if "{" in path.name:
        return "shards"
    if path.suffix in ARCHIVES:
        return ARCHIVES[path.suffix]
    if path.suffix in COMPRESSED:
        raise DataError(
            f"{path}: is compressed, and can only be read from its start; "
            "unpack the compression once (gunzip) and name the .tar"
        )
    if not path.is_dir():
        raise DataError(
            f"{path}: no folder, archive or HDF5 file; name one, or say what it is (--kind, data=)"
        )
    if (path / "_info.json").exists():
        return "shards"
    if (path / "state.json").exists() or (path / "train" / "state.json").exists():
        return "huggingface"
    names = sorted(path.iterdir())
    if any(name.name.endswith(".journal.partial") for name in names):
        raise DataError(f"{path}: a pack that is not finished; give its command again")
    return next((ARCHIVES[name.suffix] for name in names if name.suffix in ARCHIVES), "folder")
