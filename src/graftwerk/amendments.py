"""What faults have changed about a run, kept in its folder: every later start obeys it.

`faults.json` holds each time that the run went back to a checkpoint, and the micro-batch that fits
the memory. What is in force in a step is a function of these and the step's number, so that a run
that is killed in between goes on as it would have.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from graftwerk.axes import World
from graftwerk.errors import CheckpointError
from graftwerk.files import atomic
from graftwerk.run import BatchSize, Run

FILE = "faults.json"
ORDER = ("fp16", "bf16", "fp32")
"""Precisions, from low to high."""


@dataclass(frozen=True)
class Rollback:
    """In force from step number `to` on, where no later one is."""

    at: int
    """Steps done when it was decided."""
    to: int
    """Steps done by the checkpoint."""
    shift: int
    """Step s has the images that were meant for step s + shift."""
    precision: str | None = None
    """Unset: the config's."""
    rate: float = 1.0
    """On the learning rate."""


@dataclass(frozen=True)
class Micro:
    """A micro-batch that fits the memory of a device."""

    images: int
    device: str
    processes: int
    batch: int
    """Images of a step."""


@dataclass(frozen=True)
class Amendments:
    rollbacks: tuple[Rollback, ...] = ()
    micro: Micro | None = None

    def _in_force(self, step: int) -> Rollback | None:
        return next((r for r in reversed(self.rollbacks) if r.to <= step), None)

    def data_step(self, step: int) -> int:
        """The step whose images are due in `step`."""
        rollback = self._in_force(step)
        return step + (rollback.shift if rollback else 0)

    def rate(self, step: int) -> float:
        rollback = self._in_force(step)
        return rollback.rate if rollback else 1.0

    def precision(self, run: Run) -> Any:
        """Of the whole start: the highest that is in force anywhere."""
        return (self.rollbacks[-1].precision if self.rollbacks else None) or run.precision

    def batch(self, run: Run, world: World) -> BatchSize:
        """The run's, in micro-batches that fit where that is known."""
        known = self.micro
        if known is None or known != replace(of_run(run, world), images=known.images):
            return run.batch
        micro = known.images if run.batch.micro is None else min(known.images, run.batch.micro)
        return run.batch.model_copy(update={"micro": micro})

    def at_most(self, micro: int, run: Run, world: World) -> int:
        """`micro`, or what is known to fit such a device where that is less, in any group."""
        known = self.micro
        if (
            known is None
            or known.device != device_kind(world.device)
            or known.batch != run.batch.size
        ):
            return micro
        return min(micro, known.images)

    def back(self, run: Run, *, at: int, to: int) -> Amendments:
        """The run returns from `at` steps done to `to`."""
        rate, precision, then = self.rate(at), self.precision(run), run.faults.then
        if then == "rate":
            rate *= run.faults.factor
        if then == "precision":
            precision = _higher(precision, run)
        entry = Rollback(at, to, self.data_step(at) - to, precision, rate)
        return replace(self, rollbacks=(*self.rollbacks, entry))

    def write(self, folder: Path) -> None:
        with atomic(folder / FILE) as file:
            file.write(json.dumps(asdict(self), indent=1).encode())


def _higher(precision: str, run: Run) -> str:
    """The next precision that the run's products know; 2:4 products are in half precision."""
    known = ORDER[:2] if getattr(run.sparsity, "execution", "") == "semi_structured" else ORDER
    return known[min(known.index(precision) + 1, len(known) - 1)]


def of_run(run: Run, world: World) -> Micro:
    """What a micro-batch that fits would be remembered for; its size is not known yet."""
    return Micro(0, device_kind(world.device), world.size, run.batch.size)


def device_kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def read(folder: Path) -> Amendments:
    """Those of a run folder; none where nothing went wrong.

    Raises CheckpointError where the file can't be read: without it the run would go on differently.
    """
    path = folder / FILE
    if not path.exists():
        return Amendments()
    try:
        facts = json.loads(path.read_bytes())
        return Amendments(
            tuple(Rollback(**entry) for entry in facts["rollbacks"]),
            Micro(**facts["micro"]) if facts["micro"] else None,
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{path}: can't be read ({type(error).__name__}: {error}); without it the run would go "
            "on differently: bring it back, or start anew with resume=never"
        ) from None
