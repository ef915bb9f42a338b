"""Steps left out, counted and told; and what happens after too many in a row."""

from __future__ import annotations

from graftwerk.axes import Step
from graftwerk.errors import DivergedError
from graftwerk.ledger import Ledger
from graftwerk.parts import Parts


def count(parts: Parts, step: Step, ledger: Ledger) -> None:
    """Count the step; of one that was left out, tell why."""
    scale = parts.precision.scale if step.skipped else 1.0
    parts.guard.count(skipped=step.skipped, scale=scale)
    if step.skipped:
        skip = parts.guard.reason(scale)
        ledger.own("step_skipped", step=step.number + 1, reason=skip.reason, images=skip.images)


def check(parts: Parts, done: int, agreed: int, ledger: Ledger) -> None:
    """Raises `DivergedError` on all ranks after too many steps in a row were left out.

    `agreed` is the longest streak of any rank, some steps ago; replicated ranks know their own.
    """
    streak = parts.guard.streak if parts.sync.replicated else agreed
    if streak:
        ledger.gather()
    if streak >= parts.run.faults.patience:
        raise DivergedError(
            f"{streak} steps in a row up to step {done} were left out, since their loss or "
            "gradients were not finite; checkpoints of before are intact, and a lower "
            "optim.lr, a warm-up or optim.clip may help"
        )
