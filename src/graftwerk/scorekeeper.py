"""Evaluations of a run: when they are due, what they gave, which was the best, and what is owed."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from graftwerk.evaluate import LeftError, evaluate
from graftwerk.ledger import Ledger
from graftwerk.meter import Meter
from graftwerk.parts import Parts
from graftwerk.pictures import Pictures
from graftwerk.recalibrate import recalibrated

Asked = Callable[[], int]


def nothing() -> int:
    return 0


class Scorekeeper:
    """Of one rank. `at_step`, `catch_up` and `evaluate` are calls of all ranks together."""

    def __init__(
        self,
        parts: Parts,
        ledger: Ledger,
        meter: Meter,
        slowly: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        """`slowly` is around what takes its time."""
        self._parts, self._ledger, self._meter, self._slowly = parts, ledger, meter, slowly
        self.pictures = Pictures(parts, parts.run.folder)
        self.scores: dict[str, float] = {}
        self.best: float | None = None
        self._unscored: float | None = None
        """The learning rate of a step whose evaluation was left for a signal."""
        self._every = max(1, round(parts.run.evaluate.every * parts.plan.steps_per_epoch))

    def at_step(self, done: int, lr: float, asked: Asked) -> tuple[bool, int]:
        """After `done` steps: whether the weights are the best so far, and the signal for which any
        rank left the evaluation, or 0; the last one of a run is not left."""
        last = done == self._parts.plan.total_steps
        if done % self._every and not last:
            return False, 0
        try:
            return self.evaluate(done, lr, nothing if last else asked), 0
        except LeftError as error:
            self._unscored = lr
            return False, error.number

    def catch_up(self, done: int, asked: Asked) -> bool:
        """At a start: make up the evaluation that the last one left, if any. Raises LeftError."""
        if self._unscored is None:
            return False
        better = self.evaluate(done, self._unscored, asked)
        self._unscored = None
        return better

    def evaluate(self, done: int, lr: float, asked: Asked = nothing) -> bool:
        """Score weights and their average, log the row, and say whether it is the best so far.

        Raises LeftError, with nothing changed, where any rank is `asked` to stop.
        """
        parts = self._parts
        with self._slowly("evaluating"):
            own = self._of(parts.objective.net, asked, draw_at=done)
            scores, ranked = {f"eval_{k}": v for k, v in own.items()}, "eval_"
            if parts.ema is not None:
                averaged = self._of(parts.ema.module, asked)
                scores |= {f"ema_{k}": v for k, v in averaged.items()}
                ranked = "ema_"
        self.scores = scores
        name, direction = parts.objective.best
        value = scores[ranked + name]
        better = not math.isnan(value) and (
            self.best is None or (value > self.best if direction == "max" else value < self.best)
        )
        self.best = value if better else self.best
        train_loss = self._meter.take(parts.world, Meter.EVALUATION)
        if (logbook := self._ledger.logbook) is not None:
            epoch = done / parts.plan.steps_per_epoch
            logbook.row(epoch, {"train_loss": train_loss, **scores, "lr": lr})
            if facts := parts.sync.metrics():
                logbook.event("replicas", step=done, **facts)
        return better

    def _of(self, net: nn.Module, asked: Asked, draw_at: int | None = None) -> dict[str, float]:
        """Scores of `net`; with `draw_at`, the steps done, pictures of it too."""
        parts = self._parts
        with parts.sync.averaged(net) as averaged, recalibrated(parts, averaged):
            scores = evaluate(
                parts.objective,
                averaged,
                self.pictures.remembering(parts.eval_batches()),
                precision=parts.precision,
                world=parts.world,
                to_device=parts.to_device,
                on_problem=self._ledger.image_skipped,
                asked=asked,
            )
            if draw_at is not None and self._ledger.logbook is not None:
                self.pictures.draw(averaged, draw_at, self._ledger.logbook)
        return scores

    def state_dict(self) -> dict[str, Any]:
        return {"scores": self.scores, "best": self.best, "unscored": self._unscored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scores, self.best = state["scores"], state["best"]
        self._unscored = state.get("unscored")
