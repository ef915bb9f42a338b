"""A run with a state that no checkpoint holds: what `verify-resume` is there to find."""

from __future__ import annotations

from typing import Any

from torch import nn

from doubles import UnhurriedObjective
from doubles import tiny as with_everything
from graftwerk import axes
from graftwerk.axes import Batch, Output
from graftwerk.config import override
from graftwerk.objectives.config import Objective
from graftwerk.run import Run


class Forgetful(Objective, kind="forgetful"):
    def build(self, net: nn.Module, **facts: Any) -> axes.Objective:
        del facts
        return ForgetfulObjective(net, seconds=0.05)


class ForgetfulObjective(UnhurriedObjective):
    """Its loss grows with the batches it has seen, which it counts in an ordinary attribute."""

    seen = 0

    def forward(self, batch: Batch) -> Output:
        self.seen += self.training
        loss, metrics = super().forward(batch)
        return Output(loss * (1 + self.seen / 100), metrics)


def forgetful() -> Run:
    keys = {"objective": "forgetful", "name": "forgetful", "save": "3 steps"}
    return override(Run, with_everything(), keys)
