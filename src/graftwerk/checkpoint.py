"""Checkpoints that are whole or not there.

A checkpoint is a folder ``checkpoints/step-00001234`` with one file of tensors per writing rank and
a ``manifest.json`` with their sizes and SHA-256. It is written under a temporary name, flushed to
the disk and renamed, so that a name that exists is complete; the hashes catch what a disk or a
copy did to it later. Files are read with ``weights_only=True``: no pickled code runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from graftwerk.axes import World
from graftwerk.distributed import from_main, gather, on_main
from graftwerk.errors import CheckpointError, StorageError

FORMAT = 1
State = dict[str, Any]


@contextlib.contextmanager
def atomic(path: Path) -> Generator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends without an error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        """Raises `CheckpointError` where it is missing or no manifest."""
        path = self.folder / "manifest.json"
        try:
            manifest = json.loads(path.read_text())
            if manifest["format"] != FORMAT:
                raise CheckpointError(f"{path}: written in format {manifest['format']}")
            return manifest
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: {type(error).__name__}: {error}") from None

    def verify(self) -> State:
        """The manifest, once every file has the size and hash that it names."""
        manifest = self.manifest()
        for name, facts in manifest["files"].items():
            path = self.folder / name
            size = path.stat().st_size if path.exists() else None
            if size != facts["bytes"]:
                raise CheckpointError(f"{path}: {size} bytes instead of {facts['bytes']}")
            if sha256(path) != facts["sha256"]:
                raise CheckpointError(f"{path}: its contents changed since it was written")
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

    def __init__(self, folder: Path, world: World, *, keep: int) -> None:
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
        pointer = self.folder / "best.json"
        if not pointer.exists():
            return None
        step = json.loads(pointer.read_text())["step"]
        return next((entry for entry in self.entries() if entry.step == step), None)

    def newest_good(self) -> tuple[Entry | None, list[str]]:
        """The newest entry that verifies, and why each newer one was passed over."""
        rejected: list[str] = []
        for entry in self.entries():
            try:
                entry.verify()
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

    def save(
        self, step: int, state: State | None, *, facts: State, best: State | None = None
    ) -> Path:
        """Write the states that ranks hand in (`None`: this rank has none of its own).

        `facts` go into the manifest; `best` (scores) makes this the best checkpoint.
        Raises `StorageError` on every rank if any could not write; older checkpoints are intact.
        """
        target = self.folder / f"step-{step:08d}"
        partial = target.with_name(f".{target.name}.partial")
        failure = self._write_shard(partial, state)
        shards = gather(self._world, failure)
        problems = [shard for shard in shards if isinstance(shard, str)]
        if not problems and self._world.main:
            files = {name: facts for shard in shards if shard for name, facts in shard.items()}
            manifest = {"format": FORMAT, "step": step, **facts, "files": files}
            problems = self._publish(partial, target, manifest, best)
        problems = from_main(self._world, problems)
        if problems:
            if self._world.main:
                shutil.rmtree(partial, ignore_errors=True)
            raise StorageError("\n".join([f"checkpoint of step {step} not saved:", *problems]))
        return target

    def _write_shard(self, partial: Path, state: State | None) -> State | str | None:
        """{file name: size and hash} of this rank's file; a sentence where writing failed."""
        if state is None:
            return None
        name = f"rank{self._world.rank}.pt"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            with atomic(partial / name) as file:
                torch.save(state, file)
            path = partial / name
            return {name: {"bytes": path.stat().st_size, "sha256": sha256(path)}}
        except (OSError, RuntimeError) as error:
            return _storage_problem(partial / name, error)

    def _publish(
        self, partial: Path, target: Path, manifest: State, best: State | None
    ) -> list[str]:
        try:
            with atomic(partial / "manifest.json") as file:
                file.write(json.dumps(manifest, indent=1).encode())
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
            sync_folder(self.folder)
            if best is not None:
                with atomic(self.folder / "best.json") as file:
                    file.write(json.dumps({"step": manifest["step"], **best}).encode())
            self._rotate()
        except OSError as error:
            return [_storage_problem(target, error)]
        return []

    def forget(self, *, after: int) -> None:
        """Remove what was saved after `after` steps, by one rank for all."""
        for entry in self.entries():
            if entry.step > after:
                shutil.rmtree(entry.folder)

    def _rotate(self) -> None:
        best = self.best()
        for entry in self.entries()[self._keep :]:
            if best is None or entry.step != best.step:
                shutil.rmtree(entry.folder)

    def resume(self, *, replicated: bool) -> tuple[State | None, State, list[str]]:
        """(this rank's state, manifest, why newer checkpoints were rejected).

        Rank 0 chooses: the newest checkpoint whose files are all intact. No checkpoint at all
        gives no state. Raises `CheckpointError` where there are some and none is intact.
        """
        entry, rejected = on_main(self._world, self.newest_good)
        if entry is None:
            return None, {}, rejected
        manifest = entry.manifest()
        shards = {f"rank{rank}.pt" for rank in range(self._world.size)}
        if not replicated and manifest["files"].keys() == shards:
            own = read_tensors(entry.folder / f"rank{self._world.rank}.pt")
            return own, manifest, rejected
        return entry.state(), manifest, rejected


def _storage_problem(path: Path, error: Exception) -> str:
    # torch.save reports a failed write as a RuntimeError; its cause is the OSError.
    cause = next((e for e in _causes(error) if isinstance(e, OSError)), error)
    reason = cause.strerror if isinstance(cause, OSError) else str(cause).splitlines()[0]
    free = shutil.disk_usage(_existing(path)).free
    return f"{path}: {reason} ({free / 2**20:.0f} MiB free); what was saved before is intact"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _existing(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())
