"""A run folder on the disk: made once, found again by the same command, read by later ones."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwerk import runfile
from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints, Entry
from graftwerk.errors import CheckpointError, ConfigError, StorageError
from graftwerk.files import replace
from graftwerk.lock import FolderLock
from graftwerk.run import Run
from graftwerk.storage import problem


def prepare(run: Run, lock: FolderLock | None = None) -> Path | None:
    """Make the folder of `run` with its `run.json`; where an old run was moved, its new name.

    With `resume=never` a folder that is already there is kept under another name. Raises
    LockedError where another process has the `lock`, and ConfigError where the folder's run was
    begun when defaults were others.
    """
    try:
        moved = _set_aside(run.folder) if run.resume == "never" else None
        runfile.check_defaults(run)
        run.folder.mkdir(parents=True, exist_ok=True)
        if lock is not None:
            lock.acquire()
        for name, text in runfile.contents(run).items():
            file, contents = run.folder / name, text.encode()
            if not file.exists() or file.read_bytes() != contents:
                replace(file, contents)
    except OSError as error:
        told = problem(run.folder / "run.json", error)
        raise StorageError(f"{told}; log.folder=… names another") from None
    return moved


def _set_aside(folder: Path) -> Path | None:
    if not folder.exists():
        return None
    with contextlib.closing(FolderLock(folder)) as lock:
        lock.acquire()
    names = (folder.with_name(f"{folder.name}.old{number}") for number in range(1, 10**6))
    return folder.rename(next(name for name in names if not name.exists()))


def finished(run: Run) -> dict[str, float] | None:
    """The scores of a run that is complete, else `None`."""
    entries = Checkpoints(run.folder / "checkpoints", World(), keep=1).entries()
    try:
        manifest = entries[0].verify() if entries else {}
    except CheckpointError:
        return None
    return manifest["scores"] if manifest.get("finished") else None


@dataclass(frozen=True)
class RunFolder:
    """A run as later commands see it."""

    path: Path
    run: Run
    facts: dict[str, Any]
    """What the run wrote down when it started: class names, steps, versions."""

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        if not (path / "run.json").exists():
            raise ConfigError([f"{path}: no run folder (it has no run.json)"])
        facts = path / "facts.json"
        if not facts.exists():
            raise ConfigError([f"{path}: this run has not started training yet"])
        return cls(path, runfile.read(path), json.loads(facts.read_text()))

    def checkpoint(self, which: str) -> tuple[Entry, dict[str, Any]]:
        """The `best` or `last` checkpoint and its state; it has been verified."""
        checkpoints = Checkpoints(self.path / "checkpoints", World(), keep=1)
        entry = checkpoints.best() if which == "best" else None
        if entry is None:
            entry, _ = checkpoints.newest_good()
        if entry is None:
            raise CheckpointError(f"{self.path}: has no checkpoint yet")
        entry.verify()
        return entry, entry.state()

    def environment(self) -> dict[str, Any]:
        """What the run last trained on, as far as strangers may know: versions, devices, commit."""
        lines = (self.path / "environment.jsonl").read_text().splitlines()
        facts = json.loads(lines[-1]) if lines else {}
        return {name: facts[name] for name in ("versions", "devices", "source") if name in facts}
