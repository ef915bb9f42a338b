"""`batch.fit`: the largest micro-batch whose real step fits the memory."""

from __future__ import annotations

import itertools
from dataclasses import replace

from graftwerk import amendments
from graftwerk.amendments import Amendments, of_run
from graftwerk.axes import World
from graftwerk.distributed import gather, on_all, on_main
from graftwerk.errors import ConfigError
from graftwerk.log.jsonl import append
from graftwerk.memory import candidates, free, largest, ran_out, where
from graftwerk.run import Run, batch_in_words
from graftwerk.seeding import random_state, restore_random_state
from graftwerk.train import take_step

STEPS = 2
"""The first makes the optimizer's state, the second needs the memory of all."""
PASSES = 2
"""Micro-batches of a step: from the second on gradients are there during the forward pass."""


def fit(run: Run, world: World) -> None:
    """Find the micro-batch of a run that asks for it, and remember it in the run's folder.

    A call of all ranks together, before they train: each tries for itself, all at the same time,
    and the smallest counts. What is known from an earlier start on such a device is taken. Raises
    ConfigError where not even the smallest fits.
    """
    known = on_main(world, lambda: amendments.read(run.folder))
    if not run.batch.fit or known.batch(run, world) is not run.batch:
        return
    sizes = candidates(run, world)
    own = on_all(world, lambda: largest(sizes, lambda micro: fits(run, world, micro)))
    found = min(gather(world, own or 0))
    if found == 0:
        raise ConfigError(
            [
                f"batch.fit: not even a micro-batch of {sizes[0]} fits the memory of "
                f"{where(world)}; take a smaller model or augment.size, or precision=bf16"
            ]
        )
    on_main(world, lambda: _remember(run, world, known, found))


def _remember(run: Run, world: World, known: Amendments, micro: int) -> None:
    replace(known, micro=replace(of_run(run, world), images=micro)).write(run.folder)
    accumulate = run.batch.size // world.size // micro
    found = batch_in_words(run.batch.size, world.size, accumulate, micro)
    print(f"batch.fit: {found}", flush=True)
    reason = f"{found} fits the memory of {where(world)}"
    append(run.folder, "batch_fit", {"micro": micro, "reason": reason})


def fits(run: Run, world: World, micro: int) -> bool:
    """Whether steps with `micro` images fit: forward, backward, optimizer, masks and average.

    They are a run's own, of this rank alone, built for this and thrown away.
    """
    before = random_state()
    try:
        _try(run, World(device=world.device, local_size=world.local_size), micro)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return False
    finally:
        free()
        restore_random_state(before)
    return True


def _try(run: Run, alone: World, micro: int) -> None:
    amended = Amendments(micro=replace(of_run(run, alone), images=micro))
    p = run.build(alone, amended)
    passes = min(PASSES, p.plan.accumulate)
    p.plan = replace(p.plan, accumulate=passes, share=passes * micro)
    p.begin()
    p.sync.attach(p.model, p.optimizer)
    p.objective.train()
    batches = p.first_batches(STEPS * passes)
    for step in itertools.islice(p.steps(0), STEPS):
        take_step(p, batches, step)
        p.average(step)
