"""Scores on the validation images: every image counts once, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from graftwerk.axes import Batch, Objective, World
from graftwerk.distributed import gather
from graftwerk.errors import DataError
from graftwerk.precision import Precision


class LeftError(Exception):
    """An evaluation was left for what somebody asked for; `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"left by signal {number}")
        self.number = number


@contextmanager
def evaluating(objective: Objective, net: nn.Module) -> Generator[None]:
    """`objective` in eval mode with `net` in the place of its own network."""
    own, modes = objective.net, [(module, module.training) for module in objective.modules()]
    objective.net = net
    objective.eval()
    try:
        yield
    finally:
        objective.net = own
        for module, training in modes:
            module.training = training


def evaluate(
    objective: Objective,
    net: nn.Module,
    batches: Iterator[Batch],
    *,
    precision: Precision,
    world: World,
    to_device: Callable[[Batch], Batch],
    on_problem: Callable[[str], None] = lambda _: None,
    asked: Callable[[], int] = lambda: 0,
) -> dict[str, float]:
    """Mean scores of `net` over all images of all ranks. A call of all ranks together.

    Raises LeftError on all ranks where any of them is `asked` to stop meanwhile.
    """
    sums: dict[str, torch.Tensor] = {}
    count = 0
    with evaluating(objective, net), torch.inference_mode():
        for batch in batches:
            if asked():
                break
            for problem in batch.problems:
                on_problem(problem)
            with precision.autocast():
                scores = objective.evaluate(to_device(batch))
            for name, value in scores.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.double()
            count += len(batch.indices)
    own = {name: value.item() for name, value in sums.items()}, count, asked()
    facts = gather(world, own)
    if number := max(number for *_, number in facts):
        raise LeftError(number)
    shares = [(share, count) for share, count, _ in facts]
    total = sum(count for _, count in shares)
    if total == 0:
        raise DataError("no validation image could be read")
    names = {name: None for share, _ in shares for name in share}
    return {name: sum(share.get(name, 0.0) for share, _ in shares) / total for name in names}
