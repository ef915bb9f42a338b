"""What happens to a training on purpose: signals, kills, damaged files, full disks."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints, Entry
from graftwerk.errors import AGAIN, DONE, STORAGE_ERROR, CheckpointError
from graftwerk.verify import node
from graftwerk.verify.attempt import Attempt, FailedError, Follower, Started

POLL = 0.002
"""Seconds between two looks; writing a checkpoint takes longer."""
PATIENCE = 600.0
"""Seconds within which a run has to obey a signal."""
FIRST_LIMIT = 2**18
"""Bytes of a file that can be written where no checkpoint tells how large one is."""

A = TypeVar("A", bound=Started)


@dataclass
class Scene(Generic[A]):
    """A run that trains."""

    attempt: A
    folder: Path
    """Of the run."""
    log: Follower
    rng: random.Random
    left: set[tuple[Path, int]] = field(default_factory=set[tuple[Path, int]])
    """Files half-written by an earlier attempt."""

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints", World(), keep=1)

    def half_written(self) -> set[tuple[Path, int]]:
        return node.half_written(self.folder)

    def half_a_checkpoint(self) -> int:
        """In bytes."""
        entries = self.checkpoints.entries()
        sizes = [file.stat().st_size for entry in entries for file in entry.folder.glob("*.pt")]
        return min(sizes, default=2 * FIRST_LIMIT) // 2

    def saving(self) -> bool:
        """Whether a checkpoint is being written now."""
        return bool(self.half_written() - self.left)

    def until(self, happened: Callable[[], bool]) -> bool:
        """Wait for it; False where the training ends before."""
        while not happened():
            if self.attempt.code is not None:
                return False
            time.sleep(POLL)
        return True


Disturbance = Callable[[Scene[Attempt]], str | None]
"""Does it, and says what exactly; None where the run ended by itself before."""


def killed(scene: Scene[Attempt]) -> str | None:
    if scene.attempt.code is not None:
        return None
    scene.attempt.kill()
    return "SIGKILL"


def terminated(scene: Scene[Attempt]) -> str | None:
    if scene.attempt.code is not None:
        return None
    scene.attempt.terminate()
    code = scene.attempt.wait(PATIENCE)
    if code is None:
        scene.attempt.kill()
        raise FailedError(f"SIGTERM was not obeyed within {PATIENCE:.0f} s")
    if code not in (AGAIN, DONE, -signal.SIGTERM, 128 + signal.SIGTERM):
        raise scene.attempt.failed("after SIGTERM")
    return f"SIGTERM, exit code {code}"


def killed_while_saving(scene: Scene[Attempt]) -> str | None:
    if not scene.until(scene.saving):
        return None
    scene.attempt.kill()
    return "SIGKILL while a checkpoint is written"


def truncated(scene: Scene[Attempt]) -> str | None:
    """Only where an older checkpoint is intact: without one, a run refuses to go on."""
    if killed(scene) is None:
        return None
    return f"SIGKILL{cut_newest(scene)}"


def cut_newest(scene: Scene[A]) -> str:
    """Cut a file of the newest checkpoint to a random length; what was done."""
    intact = [entry for entry in scene.checkpoints.entries() if _is_intact(entry)]
    if len(intact) < 2:
        return " (no older checkpoint that a truncated one could fall back to)"
    file = scene.rng.choice(sorted(intact[0].folder.glob("*.pt")))
    size = scene.rng.randrange(file.stat().st_size)
    os.truncate(file, size)
    return f", {file.parent.name}/{file.name} cut to {size:,} bytes"


def full_disk(scene: Scene[Attempt]) -> str | None:
    """No file can grow beyond half a checkpoint, until a save failed; then the run is killed."""
    limit = scene.half_a_checkpoint()
    scene.attempt.limit_files(limit)
    tried = scene.until(lambda: _save_failed(scene))
    if scene.attempt.code is None:
        scene.attempt.kill()
        return f"no file beyond {limit:,} bytes, SIGKILL after a save failed"
    if scene.attempt.code == DONE and not tried:
        return None
    if scene.attempt.code != STORAGE_ERROR:
        raise scene.attempt.failed("with a full disk")
    return f"no file beyond {limit:,} bytes, exit code {STORAGE_ERROR}"


def _save_failed(scene: Scene[Attempt]) -> bool:
    return any(line.get("event") == "save_failed" for line in scene.log.new())


def _is_intact(entry: Entry) -> bool:
    try:
        entry.verify()
    except CheckpointError:
        return False
    return True


KINDS: Mapping[str, Disturbance] = {
    "SIGKILL": killed,
    "SIGTERM": terminated,
    "SIGKILL while saving": killed_while_saving,
    "truncated checkpoint": truncated,
    "full disk": full_disk,
}
