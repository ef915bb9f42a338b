"""Many runs from one: the product of lists of values over keys of the config.

    grid(base, {"sparsity.density": (0.1, 0.2), "seed": range(1, 6)})       # 10 runs

A grid is a pipeline of runs that don't depend on each other: each has the folder that its config
names, so that what is finished is skipped, and what two grids share is trained once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from graftwerk import config
from graftwerk.errors import ConfigError
from graftwerk.pipeline import Pipeline
from graftwerk.run import HOW_NOT_WHAT, Run

Axes = Mapping[str, Iterable[Any]]


def grid(base: Run, axes: Axes) -> Pipeline:
    """`base` with every combination of the values of `axes`, the last key varying fastest.

    A value that is a mapping sets several keys at once, below the axis' own key or (with a key
    that begins with ``+``) below the root: ``{"+": ({"seed": 1, "epochs": 2}, …)}``.
    """
    uncounted = [f"{key}: is no part of a run folder's name" for key in axes if key in HOW_NOT_WHAT]
    if uncounted:
        raise ConfigError([*uncounted, "the runs of a grid over it would share one folder"])
    *others, last = axes
    seeds = tuple(axes[last]) if last == "seed" else ()
    if seeds and all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        runs = _product(base, {key: axes[key] for key in others})
        return Pipeline(
            _numbered([run.model_copy(update={"seed": seed}) for run in runs for seed in seeds])
        )
    return Pipeline(_numbered(_product(base, axes)))


def _product(base: Run, axes: Axes) -> list[Run]:
    keys = list(axes)
    return [
        config.override(Run, base, _overrides(zip(keys, values, strict=True)))
        for values in itertools.product(*(tuple(axes[key]) for key in keys))
    ]


def together(*grids: Pipeline | Run) -> Pipeline:
    """The runs of all `grids`, each once, in order."""
    runs = {run.hash: run for part in grids for run in Pipeline.of(part).runs.values()}
    return Pipeline(_numbered(list(runs.values())))


def _numbered(runs: Sequence[Run]) -> dict[str, Run]:
    return {str(number): run for number, run in enumerate(runs, start=1)}


def _overrides(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for key, value in pairs:
        if isinstance(value, Mapping):
            prefix = "" if key.startswith("+") else f"{key}."
            overrides |= {f"{prefix}{name}": item for name, item in value.items()}
        else:
            overrides[key] = value
    return overrides
