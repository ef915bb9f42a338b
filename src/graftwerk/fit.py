"""Whether a checkpoint is of these weights, found out before any of them is touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from graftwerk.errors import CheckpointError

NAMED = 5
"""Differences that are spelled out."""


def check_fit(
    state: Mapping[str, Any], objective: nn.Module, optimizer: Optimizer, average: nn.Module | None
) -> None:
    """Compare what was saved, as `Parts.state_dict` returns it, with what is there.

    Raises CheckpointError where the weights, their average or the optimizer's groups are of
    another network.
    """
    live = {
        "objective": objective.state_dict(),
        "ema": None if average is None else average.state_dict(),
        "optimizer": {"param_groups": optimizer.param_groups},
    }
    found = [d for part in live for d in _differences(part, state.get(part), live[part])]
    if found:
        more = [f"and {len(found) - NAMED} more"] if len(found) > NAMED else []
        lines = ["the checkpoint is of another model:", *found[:NAMED], *more]
        raise CheckpointError("\n".join(lines))


def _differences(part: str, saved: Any, live: Any) -> Iterator[str]:
    if (saved is None) != (live is None):
        yield f"{part}: {'not saved' if saved is None else 'saved, and not wanted'}"
        return
    if part == "optimizer":
        before, now = _groups(saved), _groups(live)
        if before != now:
            yield f"optimizer: groups of {before} parameters instead of {now}"
        return
    before, now = dict(_shapes(saved)), dict(_shapes(live))
    for name in [*now, *(name for name in before if name not in now)]:
        if before.get(name) != now.get(name):
            there, wanted = (_in_words(shapes.get(name)) for shapes in (before, now))
            yield f"{part}.{name}: {there} instead of {wanted}"


def _groups(state: Any) -> list[int] | None:
    try:
        return [len(group["params"]) for group in state["param_groups"]]
    except (LookupError, TypeError):
        return None


def _shapes(state: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    if isinstance(state, Mapping):
        for name, value in state.items():
            if isinstance(value, Tensor):
                yield str(name), tuple(value.shape)


def _in_words(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "nothing"
    return "×".join(map(str, shape)) or "a number"
