"""Opens the logbook of a run with what is known at its start."""

from __future__ import annotations

import contextlib
import json

from graftwerk import config
from graftwerk.files import replace
from graftwerk.log.logbook import Logbook, open_logbook
from graftwerk.models.factory import count_parameters
from graftwerk.parts import Parts
from graftwerk.run import batch_in_words


def open_journal(parts: Parts, run_id: str | None, start: int) -> Logbook:
    """Of rank 0. Writes `facts.json` for later commands; `start` steps were done before."""
    run, plan, world = parts.run, parts.plan, parts.world
    facts = {
        "images": len(parts.splits.train),
        "batch": batch_in_words(run.batch.size, world.size, plan.accumulate, plan.micro),
        "steps": plan.total_steps,
        "peak_lr": plan.peak_lr,
        "parameters": count_parameters(parts.objective.net),
        "device": str(world.device),
    }
    classes = {"classes": list(parts.splits.classes)}
    with contextlib.suppress(OSError):  # the logbook will complain
        replace(run.folder / "facts.json", json.dumps(facts | classes, indent=1).encode())
    return open_logbook(
        run.folder,
        run.log,
        run=config.dump(run),
        facts=facts,
        run_id=run_id,
        resumed_at=start,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
    )
