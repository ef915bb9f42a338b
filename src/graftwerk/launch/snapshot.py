"""The code as it is at submission, so that a job that waits for days runs what was submitted.

A snapshot is a folder for PYTHONPATH: the installed package `graftwerk`, and in `tree/` what git
knows or would know of the working directory: tracked files with their uncommitted changes, and
untracked ones that are not ignored. Without git, the Python files that are there. And always those
beside the files that define kinds of the runs, as far as they lie below it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import graftwerk
from graftwerk.errors import ConfigError

LARGEST_FILE = 2 * 2**20
LARGEST = 100 * 2**20
"""Bytes. Code is small; what is larger is data, and stays where it is."""

PACKAGE = Path(graftwerk.__file__).parent


def snapshot(workdir: Path, parent: Path, without: Path, kinds: Iterable[Path] = ()) -> Path:
    """Copy the code below `parent`, into a folder named by its contents; made once.

    `without` is the folder of results, `kinds` are files that define kinds. Files of more than
    2 MiB are no code and left out.

    Raises ConfigError where the code is larger than any code is.
    """
    files = dict(_files(workdir, without.resolve(), kinds))
    size = sum(source.stat().st_size for source in files.values())
    if size > LARGEST:
        raise ConfigError(
            [
                f"{workdir}: {size / 2**20:.0f} MiB of code, and {LARGEST // 2**20} are the limit; "
                "name data and results in .gitignore"
            ]
        )
    folder = parent / f"code-{_digest(files)}"
    if not folder.exists():
        partial = parent / f".{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for name, source in files.items():
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        partial.rename(folder)
    return folder


def _files(workdir: Path, without: Path, kinds: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """(path in the snapshot, file)."""
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield Path("graftwerk") / path.relative_to(PACKAGE), path
    names = _known_to_git(workdir) or [path.name for path in sorted(workdir.glob("*.py"))]
    for folder in sorted({file.parent for file in kinds if file.is_relative_to(workdir)}):
        names += [str(path.relative_to(workdir)) for path in sorted(folder.glob("*.py"))]
    for name in dict.fromkeys(names):
        path = workdir / name
        if without in path.resolve().parents or path.is_symlink() or not path.is_file():
            continue
        if path.stat().st_size <= LARGEST_FILE:
            yield Path("tree") / name, path


def _known_to_git(workdir: Path) -> list[str]:
    """Relative to `workdir`, below it; none outside a repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=workdir, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return [name for name in listed.stdout.split("\0") if name] if listed.returncode == 0 else []


def _digest(files: dict[Path, Path]) -> str:
    digest = hashlib.sha256()
    for name, source in files.items():
        digest.update(f"{name}\0{source.stat().st_size}\0".encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
