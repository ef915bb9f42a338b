"""Checkpoints that are whole or not there.

A checkpoint is a folder ``checkpoints/step-00001234`` with one file of tensors per writing rank and
a ``manifest.json`` with their sizes and SHA-256. It is written under a temporary name, flushed to
the disk and renamed, so that a name that exists is complete; the hashes catch what a disk or a
copy did to it later. Files are read with ``weights_only=True``: no pickled code runs.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graftwerk.axes import World
from graftwerk.distributed import from_main, gather, on_main
from graftwerk.errors import CheckpointError, StorageError
from graftwerk.files import atomic, sha256, sync_folder
from graftwerk.storage import problem

FORMAT = 2
READABLE = (1, FORMAT)
"""Format 1 has no hash of the manifest itself."""
State = dict[str, Any]


def read_tensors(path: Path) -> State:
    """What `torch.save` wrote to `path`, onto the CPU; nothing in it is executed."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can fail a parser in any way
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path}: holds more than tensors and plain values, and graftwerk never executes "
                "code from a checkpoint"
            ) from None
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: can't be read ({reason})") from None


@dataclass(frozen=True)
class Entry:
    """A checkpoint on the disk."""

    folder: Path
    step: int

    def manifest(self) -> State:
        """Raises `CheckpointError` where it is missing, damaged, or another checkpoint's."""
        path = self.folder / "manifest.json"
        try:
            manifest = json.loads(path.read_bytes())
            if manifest["format"] not in READABLE:
                raise CheckpointError(
                    f"{path}: written in format {manifest['format']}, by another version of "
                    f"graftwerk; this one reads {READABLE[0]} to {FORMAT}"
                )
            hashed = "sha256" in manifest or manifest["format"] != 1
            if hashed and manifest.pop("sha256") != digest(manifest):
                raise CheckpointError(f"{path}: its contents changed since it was written")
            if manifest["step"] != self.step:
                raise CheckpointError(f"{path}: is that of step {manifest['step']}")
            _check_files(manifest["files"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path}: {type(error).__name__}: {error}") from None
        return manifest

    def verify(self) -> State:
        """The manifest, once every file has the size and hash that it names."""
        manifest = self.manifest()
        for name, facts in manifest["files"].items():
            path = self.folder / name
            try:
                size = path.stat().st_size if path.exists() else None
                if size != facts["bytes"]:
                    raise CheckpointError(f"{path}: {size} bytes instead of {facts['bytes']}")
                if sha256(path) != facts["sha256"]:
                    raise CheckpointError(f"{path}: its contents changed since it was written")
            except OSError as error:
                raise CheckpointError(f"{path}: {error.strerror}") from None
        return manifest

    def state(self) -> State:
        """The one state of replicated ranks, or the average of those that differ.

        Of an average, what belongs to a single rank (its `sync` and `random`) is the first one's.
        """
        names = sorted(self.manifest()["files"], key=lambda name: (len(name), name))
        states = [read_tensors(self.folder / name) for name in names]
        if len(states) == 1:
            return states[0]
        own = {"sync": states[0]["parts"]["sync"]}
        shared = [state["parts"] | {"sync": None} for state in states]
        return states[0] | {"parts": average(shared) | own}


def digest(manifest: State) -> str:
    """The SHA-256 of a manifest's contents."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _check_files(files: Any) -> None:
    """Raises ValueError, TypeError or KeyError for what no manifest says of its files."""
    if not isinstance(files, dict) or not files:
        raise TypeError("names no files")
    for name, facts in files.items():
        if not re.fullmatch(r"rank\d+\.pt", name):
            raise ValueError(f"names a file {name!r}")
        if not isinstance(facts["bytes"], int) or not isinstance(facts["sha256"], str):
            raise TypeError(f"has no size and hash of {name}")


def average(states: Sequence[Any]) -> Any:
    """Means of the floating-point tensors of equally built states; the rest is the first one's."""
    first = states[0]
    if isinstance(first, torch.Tensor) and first.is_floating_point():
        return torch.stack([state.double() for state in states]).mean(0).to(first.dtype)
    if isinstance(first, dict):
        return {key: average([state[key] for state in states]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(average(items) for items in zip(*states, strict=True))
    return first


class Checkpoints:
    """The checkpoints of a run folder. `save` and `resume` are calls of all ranks together."""

    def __init__(self, folder: Path, world: World, *, keep: int, late: int = 0) -> None:
        """`late`: so many steps later all ranks know what has become of a step. Of the checkpoints
        that are kept, beside the best, one at least is as old.
        """
        self._late = late
        self.folder = folder
        self._world = world
        self._keep = keep

    def entries(self) -> list[Entry]:
        """Newest first, good or not."""
        found = [
            Entry(path, int(match[1]))
            for path in self.folder.glob("step-*")
            if (match := re.fullmatch(r"step-(\d+)", path.name))
        ]
        return sorted(found, key=lambda entry: entry.step, reverse=True)

    def best(self) -> Entry | None:
        """The checkpoint with the best evaluation, where one was recorded and is still there."""
        try:
            step = json.loads((self.folder / "best.json").read_bytes())["step"]
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return next((entry for entry in self.entries() if entry.step == step), None)

    def newest_good(self, config: str | None = None) -> tuple[Entry | None, list[str]]:
        """The newest entry that verifies, and why each newer one was passed over.

        With `config`, the hash of a run, one that was copied here from another run is passed over.
        """
        rejected: list[str] = []
        for entry in self.entries():
            try:
                owner = entry.verify().get("config")
                if config is not None and owner not in (None, config):
                    raise CheckpointError(f"{entry.folder}: is of another run (config {owner})")
                return entry, rejected
            except CheckpointError as error:
                rejected.append(str(error))
        if rejected:
            raise CheckpointError(
                "\n".join(
                    [
                        f"{self.folder}: none of its checkpoints is intact:",
                        *rejected,
                        "resume=never starts anew and keeps this folder under another name",
                    ]
                )
            )
        return None, []

    # ------------------------------------------------------------ writing

    def save(
        self, step: int, state: State | None, *, facts: State, best: State | None = None
    ) -> Path:
        """Write the states that ranks hand in (`None`: this rank has none of its own).

        `facts` go into the manifest; `best` (scores) makes this the best checkpoint.
        Raises `StorageError` on every rank if any could not write; older checkpoints are intact.
        """
        shards = gather(self._world, self.write_shard(step, state))
        problems = self.publish(step, shards, facts, best) if self._world.main else []
        if problems := from_main(self._world, problems):
            raise StorageError("\n".join([f"checkpoint of step {step} not saved:", *problems]))
        return self.path(step)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _partial(self, step: int) -> Path:
        return self.folder / f".step-{step:08d}.partial"

    def write_shard(self, step: int, state: State | None) -> State | str | None:
        """{file name: size and hash} of this rank's file; a sentence where writing failed."""
        if state is None:
            return None
        partial, name = self._partial(step), f"rank{self._world.rank}.pt"
        try:
            self.folder.mkdir(exist_ok=True)  # never the run's folder: its disk may be unmounted
            partial.mkdir(exist_ok=True)
            with atomic(partial / name) as file:
                torch.save(state, file)
            path = partial / name
            return {name: {"bytes": path.stat().st_size, "sha256": sha256(path)}}
        except (OSError, RuntimeError) as error:
            return problem(partial / name, error)

    def publish(
        self, step: int, shards: Sequence[State | str | None], facts: State, best: State | None
    ) -> list[str]:
        """Give the shards that are written their name; sentences where that failed. Of rank 0."""
        partial, target = self._partial(step), self.path(step)
        problems = [shard for shard in shards if isinstance(shard, str)]
        files = {n: f for shard in shards if isinstance(shard, dict) for n, f in shard.items()}
        manifest = {"format": FORMAT, "step": step, **facts, "files": files}
        manifest = json.loads(json.dumps(manifest))
        try:
            if not problems:
                with atomic(partial / "manifest.json") as file:
                    whole = manifest | {"sha256": digest(manifest)}
                    file.write(json.dumps(whole, indent=1).encode())
                if target.exists():
                    shutil.rmtree(target)
                partial.rename(target)
                sync_folder(self.folder)
                if best is not None:
                    with atomic(self.folder / "best.json") as file:
                        file.write(json.dumps({"step": step, **best}).encode())
                self._rotate()
        except OSError as error:
            problems = [problem(target, error)]
        if problems:
            shutil.rmtree(partial, ignore_errors=True)
        return problems

    def forget(self, *, after: int) -> None:
        """Remove what was saved after `after` steps, by one rank for all."""
        for entry in self.entries():
            if entry.step > after:
                shutil.rmtree(entry.folder)

    def _rotate(self) -> None:
        entries, best = self.entries(), self.best()
        if not entries:  # the folder is gone: the next save will say so
            return
        kept = {entry.step for entry in entries[: self._keep]}
        kept |= {best.step} if best is not None else set()
        judged = (entry.step for entry in entries if entry.step <= entries[0].step - self._late)
        kept |= {next(judged, entries[-1].step)}
        for entry in entries:
            if entry.step not in kept:
                shutil.rmtree(entry.folder)

    def clear(self) -> None:
        """Remove what was left half-written by a process that was killed. Of rank 0, at a start."""
        for partial in self.folder.glob(".step-*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    # ------------------------------------------------------------ reading

    def resume(
        self, *, replicated: bool, config: str | None = None
    ) -> tuple[State | None, State, list[str]]:
        """(this rank's state, manifest, why newer checkpoints were rejected).

        Rank 0 chooses: the newest checkpoint of this run (`config`) whose files are all intact. No
        checkpoint at all gives no state. Raises `CheckpointError` where there are some and none is
        intact.
        """
        entry, rejected = on_main(self._world, lambda: self.newest_good(config))
        if entry is None:
            return None, {}, rejected
        manifest = entry.manifest()
        shards = {f"rank{rank}.pt" for rank in range(self._world.size)}
        if not replicated and manifest["files"].keys() == shards:
            own = read_tensors(entry.folder / f"rank{self._world.rank}.pt")
            return own, manifest, rejected
        return entry.state(), manifest, rejected
