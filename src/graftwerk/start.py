"""From a config to a running training: what `graftwerk run` and `graftwerk show` do."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graftwerk import config, handover, runfolder
from graftwerk.axes import Objective, World
from graftwerk.distributed import join, on_all, on_main
from graftwerk.errors import DataError
from graftwerk.lock import FolderLock
from graftwerk.models.factory import count_parameters
from graftwerk.parts import build_net, build_objective, open_data, plan
from graftwerk.run import Run, batch_in_words


def start(run: Run, began: Callable[[Path], None] | None = None) -> dict[str, float]:
    """Train `run` in its folder, or go on there; a finished run is left as it is.

    Rank 0 calls `began` with the folder once that is made.
    """
    from graftwerk.fitting import fit
    from graftwerk.train import train

    staged = _tried(run.data.staged)  # may take minutes, which a process group would not wait for
    elastic = run.sync.elastic
    with (
        join(
            run.device,
            timeout=elastic.timeout if elastic else None,
            start_timeout=run.faults.start_timeout,
        ) as world,
        contextlib.closing(FolderLock(run.folder)) as lock,
    ):
        on_all(world, staged)
        done = None if world.newcomer else _prepare(run, world, lock, began)
        if done is None:
            lock.keep(wanted=lambda: world.main)
            if not world.newcomer:
                fit(run, world)
            return train(run, world)
    if world.main:
        print(f"{run.folder} is finished; resume=never trains it anew")
        print("  ".join(f"{name} {value:.4g}" for name, value in done.items()))
    return done


def _tried(work: Callable[[], object]) -> Callable[[], None]:
    """Do it, and return what raises the error that it raised."""
    problem: Exception | None = None
    try:
        work()
    except Exception as error:
        problem = error

    def judge() -> None:
        if problem is not None:
            raise problem

    return judge


def _prepare(
    run: Run, world: World, lock: FolderLock, began: Callable[[Path], None] | None
) -> dict[str, float] | None:
    """Rank 0 makes the folder; the scores if there is nothing left to train."""

    def prepare() -> dict[str, float] | None:
        moved = runfolder.prepare(run, lock)
        if moved is not None:
            print(f"the earlier run is kept as {moved}")
        done = runfolder.finished(run)
        if done is None and began is not None:
            began(run.folder)
        handover.check(run)
        return done

    return on_main(world, prepare)


def derived(run: Run, world_size: int) -> dict[str, Any]:
    """What follows from the config, by name; what can't be known says why."""
    facts: dict[str, Any] = {"run folder": str(run.folder)}
    try:
        splits = open_data(run)
    except DataError as error:
        return facts | {"data": f"can't be opened: {error}"}
    numbers = plan(run, len(splits.train), world_size)
    absent = {key: path for key, path in handover.inputs(run).items() if not path.exists()}
    facts |= {key: f"{path} does not exist yet" for key, path in absent.items()}
    net, notes = build_net(_without_weights(run) if absent else run, len(splits.classes))
    rows, columns = run.augment.height_width
    trainable = {} if absent else {"trainable": f"{_count_trainable(build_objective(run, net)):,}"}
    return facts | {
        "images": f"{len(splits.train):,} to train, {len(splits.val):,} to validate",
        "classes": len(splits.classes),
        "input": f"{run.data.channels}×{rows}×{columns}",
        "parameters": f"{count_parameters(net):,}",
        **trainable,
        "effective batch": batch_in_words(
            run.batch.size, world_size, numbers.accumulate, numbers.micro
        ),
        "steps": f"{numbers.total_steps:,} ({numbers.steps_per_epoch:,} an epoch)",
        "peak learning rate": f"{numbers.peak_lr:g}",
        **{f"pretrained ({number})": line for number, line in enumerate(notes, start=1)},
    }


def _count_trainable(objective: Objective) -> int:
    return sum(p.numel() for p in objective.parameters() if p.requires_grad)


def _without_weights(run: Run) -> Run:
    """As of a pipeline's run whose inputs have not been trained yet."""
    model = run.model.model_copy(update={"pretrained": None, "modules": ()})
    return run.model_copy(update={"model": model})


def describe(run: Run) -> str:
    """Every key of the tree, and what follows from it."""
    world_size = int(os.environ.get("WORLD_SIZE", run.processes))
    lines = [f"{key} = {value}" for key, value in flat(config.dump(run))]
    facts = derived(run, world_size)
    width = max(len(name) for name in facts)
    lines += ["", *(f"{name:{width}}  {value}" for name, value in facts.items())]
    return "\n".join(lines)


def flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and values as they are typed on the command line."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = prefix.removesuffix(".") if key == "kind" else f"{prefix}{key}"
        if isinstance(value, dict) and value:
            rows += flat(value, f"{name}.")
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value)))
    return rows
