"""Schedules as pure functions of the step: the factor on a peak value.

A step counts from 0. A run of T steps whose warm-up takes w of them is at step t, or ``i = t - w``
of ``T - w`` once the warm-up is over; all are counted in epochs where a schedule changes `per`
epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from graftwerk.errors import ConfigError
from graftwerk.optim.config import Constant, Cosine, Linear, Schedule, Steps


def cosine(progress: float, end: float) -> float:
    """Half a cosine from 1 to `end` while `progress` goes from 0 to 1."""
    return end + 0.5 * (1 - end) * (1 + math.cos(math.pi * progress))


def linear(progress: float, end: float) -> float:
    """A straight line from 1 to `end` while `progress` goes from 0 to 1."""
    return 1 + (end - 1) * progress


def steps(t: float, length: float, milestones: Sequence[float], factor: float) -> float:
    """`factor` to the number of milestones, shares of `length`, that t has reached."""
    rounding = 1e-6
    return factor ** sum(t >= share * length - rounding for share in milestones)


def warmup(t: float, length: float, start: float) -> float:
    """A straight line from `start` at t = 0 to 1 at t = `length`."""
    return start + (1 - start) * (t / length if length > 0 else 1.0)


def warmup_steps(schedule: Schedule, steps_per_epoch: int) -> int:
    """Length w of the warm-up in steps."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return round(schedule.warmup_epochs * steps_per_epoch)


def factor(schedule: Schedule, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """The factor of `schedule` in `step` of a run of `total_steps`."""
    t, length, w = float(step), float(total_steps), float(warmup_steps(schedule, steps_per_epoch))
    if schedule.per == "epoch":
        t, length, w = (
            float(step // steps_per_epoch),
            float(math.ceil(total_steps / steps_per_epoch)),
            w / steps_per_epoch,
        )
    t = max(0.0, t - schedule.lag)
    if t < w:
        peak = w - 1 if schedule.warmup_reaches_peak else w
        return warmup(t, peak, schedule.warmup_start)
    match schedule:
        case Cosine():
            return cosine(_progress(schedule, t, length, w), schedule.end)
        case Linear():
            return linear(_progress(schedule, t, length, w), schedule.end)
        case Steps():
            return steps(t, length, schedule.milestones, schedule.factor)
        case Constant():
            return 1.0
        case _:
            raise NotImplementedError(f"schedule of kind {schedule.kind!r}")


def _progress(schedule: Cosine | Linear, t: float, length: float, w: float) -> float:
    """From 0 when the schedule begins to 1 in its last step, or in the step after it."""
    begin = w if schedule.warmup_prefix else 0.0
    end = length - 1 if schedule.reaches_end else length
    return (t - begin) / (end - begin) if end > begin else 1.0


def check(schedule: Schedule, total_steps: int, steps_per_epoch: int, *, key: str) -> None:
    """Raises `ConfigError` naming `key` where a run that trains ends before the warm-up does."""
    w = warmup_steps(schedule, steps_per_epoch)
    if w > total_steps > 0:
        name = "warmup_epochs" if schedule.warmup_steps is None else "warmup_steps"
        raise ConfigError(
            [
                f"{key}.{name}: the warm-up of {w} steps ({w / steps_per_epoch:g} epochs) is "
                f"longer than the run of {total_steps} ({total_steps / steps_per_epoch:g} epochs)"
            ]
        )
