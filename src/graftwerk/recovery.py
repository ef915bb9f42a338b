"""Steps left out are counted and told; after too many in a row the run goes back and goes on.

Going back is a new start in the same process: everything alive is built anew from the config, the
checkpoint and what the faults have changed (`amendments`).
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import NoReturn

from graftwerk import amendments, memory
from graftwerk.amendments import Amendments, Rollback
from graftwerk.axes import Step, World
from graftwerk.checkpoint import Checkpoints
from graftwerk.distributed import on_main
from graftwerk.errors import DivergedError, GraftwerkError
from graftwerk.ledger import Ledger
from graftwerk.parts import Parts
from graftwerk.run import Run

LOADER_LOST = (
    "Linux kills processes when memory runs out; checkpoints are intact: start again, with "
    "fewer loader processes (data.workers=N) where it happens again"
)
Scores = dict[str, float]
Attempt = Callable[[Run, World, Amendments], Scores]


class BackError(GraftwerkError):
    """The run goes on from an earlier checkpoint."""


def recovering(attempt: Attempt) -> Callable[[Run, World], Scores]:
    """`attempt`, made anew as often as the run goes back."""

    @functools.wraps(attempt)
    def train(run: Run, world: World) -> Scores:
        while True:
            amended = on_main(world, lambda: amendments.read(run.folder))
            world.rollbacks = len(amended.rollbacks)
            try:
                return attempt(run, world, amended)
            except BackError:
                world.newcomer = False
            except (RuntimeError, MemoryError) as error:
                if memory.loader_lost(error):
                    _leave(run, f"{str(error).strip()}\n{LOADER_LOST}")
                if not memory.ran_out(error):
                    raise
                _go_on_smaller(run, world, memory.shrink(run, world, amended, error))
            memory.free()

    return train


def _go_on_smaller(run: Run, world: World, message: str) -> None:
    """In this process where nobody else is in the middle of a step."""
    if world.size > 1:
        _leave(run, f"{message}; start again")
    print(message, file=sys.stderr)


def _leave(run: Run, message: str) -> NoReturn:
    raise memory.MemoryIsShortError(message, elastic=run.sync.elastic is not None) from None


def count(parts: Parts, step: Step, ledger: Ledger) -> None:
    """Count the step; of one that was left out, or of weights that were withheld, tell why."""
    if (reason := parts.sync.withheld()) is not None:
        ledger.own("weights_withheld", step=step.number + 1, reason=reason)
    scale = parts.precision.scale if step.skipped else 1.0
    parts.guard.count(skipped=step.skipped, scale=scale)
    if step.skipped:
        skip = parts.guard.reason(scale)
        ledger.own("step_skipped", step=step.number + 1, reason=skip.reason, images=skip.images)


def check(
    parts: Parts, done: int, agreed: int, scores: Scores, checkpoints: Checkpoints, ledger: Ledger
) -> int:
    """The longest streak of steps left out, once it was told. A call of all ranks together.

    `agreed` is that of any rank some steps ago; replicated ranks know their own. A run that would
    end in a streak, with scores that are not finite, is as lost as after a long one.

    Raises `BackError` where the streak is too long, and `DivergedError` if that has not helped.
    """
    streak = parts.guard.streak if parts.sync.replicated else agreed
    if not streak:
        return 0
    ledger.gather()
    lost = done == parts.plan.total_steps and not all(map(math.isfinite, scores.values()))
    if streak < parts.run.faults.patience and not lost:
        return streak
    lag = 0 if parts.sync.replicated else getattr(parts.world.control, "lead", 1)
    first = done - streak - lag
    back = on_main(parts.world, lambda: _go_back(parts, checkpoints, done, first))
    ledger.event(
        "rollback",
        step=done,
        to=back.to,
        reason=f"{streak} steps in a row were not finite",
        precision=back.precision,
        rate=back.rate,
    )
    raise BackError(f"goes on from step {back.to}")


def _go_back(parts: Parts, checkpoints: Checkpoints, done: int, first: int) -> Rollback:
    """Choose a checkpoint of before step number `first`, and remember what changes from there on.

    Each serves once, unless there is no other: what is wrong may have begun before it.
    """
    run, before = parts.run, parts.amendments
    steps = [entry.step for entry in checkpoints.entries()]
    if len(before.rollbacks) >= run.faults.rollbacks:
        raise DivergedError(_given_up(done, first, before, max(steps, default=0)))
    good = [step for step in steps if step <= first]
    served = {rollback.to for rollback in before.rollbacks}
    to = next((step for step in good if step not in served), max(good, default=0))
    checkpoints.forget(after=to)
    after = before.back(run, at=done, to=to)
    after.write(run.folder)
    return after.rollbacks[-1]


def _given_up(done: int, first: int, before: Amendments, newest: int) -> str:
    tried = "".join(
        f"\n  from step {r.at} back to {r.to}: precision={r.precision}, rate × {r.rate:g}"
        for r in before.rollbacks
    )
    return (
        f"the loss or its gradients are not finite in steps {max(0, first) + 1} to {done}, and "
        f"going back has not helped{tried or ' (faults.rollbacks=0)'}\n"
        f"the checkpoint of step {newest} is intact; a lower optim.lr, a warm-up or optim.clip may "
        "help"
    )
