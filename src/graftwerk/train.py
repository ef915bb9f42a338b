"""The loop. The order of its lines is the mathematics of every method: see the ADR
docs/adr/0002-order-of-the-loop.md before changing it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from graftwerk.amendments import Amendments
from graftwerk.axes import Batch, Step, World
from graftwerk.observe import Observer
from graftwerk.parts import Parts
from graftwerk.recovery import recovering
from graftwerk.run import Run
from graftwerk.seeding import seed_everything


class Taken(NamedTuple):
    """What a step leaves for those who watch."""

    loss: torch.Tensor
    rates: tuple[float, float]
    """Learning rate and weight decay."""
    grad_norm: torch.Tensor | None


@recovering
def train(run: Run, world: World, amended: Amendments) -> dict[str, float]:
    """Train to the end, from the newest checkpoint if there is one; the last scores.

    Raises `StoppedError` after a signal, with the state saved.
    """
    p = run.build(world, amended)
    with Observer(p) as observer:
        start = observer.resume()
        p.sync.attach(p.model, p.optimizer)
        observer.catch_up(start)
        batches = observer.timing(p.train_batches(start))
        p.objective.train()
        for step in p.steps(start):
            observer.after(step, *take_step(p, batches, step))
        return observer.finish()


def take_step(p: Parts, batches: Iterator[Batch], step: Step) -> Taken:
    """Forward, backward, and what the method makes of the gradients."""
    seed_everything(p.run.seed, step.number, p.world.rank)
    rates = p.apply_schedules(step)
    p.guard.begin()
    loss = torch.zeros((), device=p.world.device)
    for micro in p.microbatches(batches, step):
        with p.sync.accumulating(last=micro.last):
            with p.precision.autocast():
                output = p.model(micro.batch)
            p.precision.backward(output.loss, micro.weight)
        p.guard.note(output.loss.detach(), micro.batch.indices)
        loss += output.loss.detach() * micro.weight
    p.precision.unscale(p.optimizer)
    p.sync.mix()
    step.skipped = not p.guard.passes()
    p.sparsity.before_step(step)
    grad_norm = p.clip()
    p.precision.step(p.optimizer, skipped=step.skipped)
    p.sparsity.after_step(step)
    p.sync.publish()
    p.optimizer.zero_grad()
    return Taken(loss, rates, grad_norm)
