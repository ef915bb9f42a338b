"""What is the same, and what is not, where a run goes on with other ranks or micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwerk.parts import Parts

SAME = "the same images make the same steps"


def shape(parts: Parts) -> dict[str, int]:
    """How a step is shared: what a checkpoint's manifest says of it."""
    return {"world_size": parts.world.size, "micro": parts.plan.micro}


def difference(manifest: Mapping[str, Any], parts: Parts) -> str | None:
    """A sentence for people; None where steps are shared as before, or none were made."""
    now = shape(parts)
    ranks, micro = (manifest.get(key, now[key]) for key in ("world_size", "micro"))
    changed: list[str] = []
    if ranks != parts.world.size:
        noun = "rank" if parts.world.size == 1 else "ranks"
        changed.append(f"on {parts.world.size} {noun}, was {ranks}")
    if micro != parts.plan.micro:
        changed.append(f"with micro-batches of {parts.plan.micro} images, was {micro}")
    if not changed:
        return None
    return f"resumed {' and '.join(changed)}: {SAME}, but {_no_longer(parts)}"


def _no_longer(parts: Parts) -> str:
    if not parts.sync.replicated:
        return "every replica starts from the average of all, and topology and batches are others"
    differs = ["sums of gradients are rounded differently", "random draws are shared differently"]
    if parts.run.augment.mixes:
        differs.append("mixup meets other pairs")
    if any("BatchNorm" in type(module).__name__ for module in parts.objective.modules()):
        differs.append("BatchNorm sees other batches")
    return f"{', '.join(differs)}: the bits are not those of a run that nobody changed"
