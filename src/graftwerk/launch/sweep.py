"""A sweep folder: which runs belong together, as plain files.

`LOG_FOLDER/sweeps/RECIPE-HASH/` holds `sweep.json` (the runs, their folders and whom they need),
and for Slurm the scripts and lists of what was submitted, what the jobs said, and the code that
they run. How a run stands is in its own folder (`launch/state.py`), so that two sweeps may share
runs.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwerk.errors import ConfigError, GraftwerkError, StorageError
from graftwerk.files import replace
from graftwerk.launch import state
from graftwerk.launch.state import FINISHED, WAITING, Queue, Status

if TYPE_CHECKING:
    from graftwerk.pipeline import Pipeline
    from graftwerk.run import Run

FORMAT = 1


@dataclass(frozen=True)
class Member:
    """A run of a sweep."""

    name: str
    folder: Path
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    folder: Path | None
    """None: all runs below a folder, which nobody submitted together."""
    members: Mapping[str, Member]
    workdir: Path = Path()
    """Where the command was given that planned it: relative paths of its runs begin there."""

    @classmethod
    def plan(cls, pipeline: Pipeline, recipe: str) -> Sweep:
        """The sweep of `pipeline`; nothing is written. Runs of one folder are one run."""
        runs, needs = pipeline.resolved(), pipeline.needs
        first: dict[Path, str] = {}
        for name, run in runs.items():
            first.setdefault(run.folder, name)
        members = {
            name: Member(
                name,
                folder,
                tuple(dict.fromkeys(first[runs[other].folder] for other in needs[name])),
            )
            for folder, name in first.items()
        }
        hashes = hashlib.sha256("".join(sorted(run.hash for run in runs.values())).encode())
        stem = re.sub(r"[^\w.+-]+", "_", Path(recipe.partition(":")[0]).stem or "sweep")
        parent = next(iter(runs.values())).log.folder / "sweeps"
        return cls(parent / f"{stem}-{hashes.hexdigest()[:8]}", members)

    def write(self, runs: Mapping[str, Run], **facts: Any) -> None:
        """The `run.json` of every run, and then `sweep.json`: who finds it finds all of them."""
        from graftwerk import runfile  # which `status` has no time for

        assert self.folder is not None
        members = {
            member.name: {"folder": str(member.folder), "needs": member.needs}
            for member in self.members.values()
        }
        contents = {"format": FORMAT, **facts, "runs": members}
        for name in self.members:
            if runs[name].resume != "never":
                runfile.check_defaults(runs[name])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, member in self.members.items():
                member.folder.mkdir(parents=True, exist_ok=True)
                for file, text in runfile.contents(runs[name]).items():
                    state.put(member.folder / file, text)
            replace(self.folder / "sweep.json", json.dumps(contents, indent=1).encode())
        except OSError as error:
            raise StorageError(f"{self.folder}: {error.strerror}") from None

    @classmethod
    def open(cls, folder: Path) -> Sweep:
        """A sweep folder, a run folder, or a folder of run folders."""
        if (folder / "sweep.json").exists():
            return cls(folder, *_members(folder / "sweep.json"))
        found = [folder] if (folder / "run.json").exists() else _run_folders(folder)
        if not found:
            raise ConfigError([f"{folder}: neither a sweep nor a run is here"])
        return cls(None, {path.name: Member(path.name, path, ()) for path in found})

    def statuses(self, queue: Queue) -> dict[str, Status]:
        """By name; of those that wait, for which other runs."""
        found = {
            name: state.status(member.folder, queue, name) for name, member in self.members.items()
        }
        for name, one in found.items():
            needs = self.members[name].needs
            missing = [other for other in needs if found[other].state != FINISHED]
            if one.state == WAITING and missing:
                found[name] = dataclasses.replace(one, reason=f"for {', '.join(missing)}")
        return found


def _run_folders(folder: Path) -> list[Path]:
    try:
        return sorted(
            Path(entry.path)
            for entry in os.scandir(folder)
            if entry.is_dir() and os.path.exists(f"{entry.path}/run.json")  # noqa: PTH110
        )
    except OSError as error:
        raise ConfigError([f"{folder}: {error.strerror}"]) from None


def _members(file: Path) -> tuple[dict[str, Member], Path]:
    """By name, and the working directory."""
    try:
        contents = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError([f"{file}: can't be read ({error})"]) from None
    if contents.get("format") != FORMAT:
        raise ConfigError(
            [
                f"{file}: written by another version of graftwerk (format "
                f"{contents.get('format')}, here {FORMAT}); use that version for it"
            ]
        )
    workdir = Path(contents.get("workdir", "."))  # folders are as they were typed there
    try:
        members = {
            name: Member(name, workdir / facts["folder"], tuple(facts["needs"]))
            for name, facts in contents["runs"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError([f"{file}: damaged ({type(error).__name__}: {error})"]) from None
    return members, workdir


@contextmanager
def locked(parent: Path) -> Generator[None]:
    """One submitter at a time in a folder of runs; a second is refused, not kept waiting.

    The lock is the kernel's, and gone with its process.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise GraftwerkError(
                f"{parent}: {holder} is submitting here; try again when it has ended"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def chunks(names: Sequence[str], size: int) -> list[list[str]]:
    return [list(names[start : start + size]) for start in range(0, len(names), size)]
