"""Micro-batches that fit the memory: found before a run, and smaller ones after it ran out."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from graftwerk import amendments
from graftwerk.amendments import Amendments, of_run
from graftwerk.axes import World
from graftwerk.data.mix import check_mix
from graftwerk.errors import AGAIN, APART, ConfigError, GraftwerkError
from graftwerk.log.jsonl import append
from graftwerk.parts import Parts
from graftwerk.run import Run

WORDS = re.compile(
    "out of memory|not enough memory|can't allocate memory|std::bad_alloc|ALLOC_FAILED", re.I
)
"""What torch, oneDNN and NVIDIA's libraries call it where they have no class of errors for it."""


class MemoryIsShortError(GraftwerkError):
    """Out of memory, and not to be mended in this process; the next start goes on."""

    def __init__(self, message: str, *, elastic: bool) -> None:
        super().__init__(message)
        self.exit_code = APART if elastic else AGAIN


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and WORDS.search(str(error)) is not None


def loader_lost(error: BaseException) -> bool:
    """Whether an error says that a loader process was ended: torch raises it in mid-step."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def free() -> None:
    """What was built before, whose references go in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def candidates(run: Run, world: World) -> list[int]:
    """Ascending, the micro-batches that divide a rank's share and can be mixed as asked."""
    share, most = _share(run, world)
    return [micro for micro in range(1, most + 1) if share % micro == 0 and _mixes(run, micro)]


def _share(run: Run, world: World) -> tuple[int, int]:
    """(images of a rank in a step, the largest micro-batch); groups that shrink share unequally."""
    share = -(-run.batch.size // world.size)
    return share, min(run.batch.micro or share, share)


def _mixes(run: Run, micro: int) -> bool:
    try:
        check_mix(run.augment, micro)
    except ConfigError:
        return False
    return True


def largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending `sizes` that fits, by bisection; None if none does.

    The largest of all is tried first: more often than not it fits.
    """
    if fits(sizes[-1]):
        return sizes[-1]
    low, high = 0, len(sizes) - 1  # all below `low` fit, `high` does not
    while low < high:
        middle = (low + high) // 2
        if fits(sizes[middle]):
            low = middle + 1
        else:
            high = middle
    return sizes[low - 1] if low else None


def shrink(run: Run, world: World, amended: Amendments, error: BaseException) -> str:
    """After a step that ran out of memory: have the next start take smaller micro-batches.

    Any rank may do so, for all; what is to be told is returned, and an event in the log. Raises
    ConfigError where they can't be smaller.
    """
    now = amended.at_most(_share(run, world)[1], run, world)
    smaller = [micro for micro in candidates(run, world) if micro < now]
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not smaller:
        raise ConfigError(
            [
                f"batch.micro: a micro-batch of {now} images does not fit the memory of "
                f"{where(world)} ({reason}), and a smaller one isn't possible; take a smaller "
                "model or augment.size, precision=bf16, or more processes"
            ]
        )
    micro = replace(of_run(run, world), images=smaller[-1])
    with contextlib.suppress(FileNotFoundError):  # another rank wrote the same
        replace(amendments.read(run.folder), micro=micro).write(run.folder)
    told = {"step": world.done + 1, "rank": world.rank, "reason": reason, "micro": smaller[-1]}
    append(run.folder, "out_of_memory", told)
    return (
        f"out of memory in step {world.done + 1}, with micro-batches of {now} images: those of the "
        f"next start have {smaller[-1]}"
    )


def where(world: World) -> str:
    return amendments.device_kind(world.device)


def remarks(parts: Parts) -> list[str]:
    """What a smaller micro-batch than the config's changes beside the memory."""
    _, asked = _share(parts.run, parts.world)
    if parts.plan.micro >= asked:
        return []
    seen = f"{parts.plan.micro} images, not {asked}"
    norms = any("BatchNorm" in type(module).__name__ for module in parts.objective.modules())
    return [
        *([f"BatchNorm sees micro-batches of {seen}"] if norms else []),
        *(
            [f"mixup pairs the images of micro-batches of {seen}"]
            if parts.run.augment.mixes
            else []
        ),
    ]
