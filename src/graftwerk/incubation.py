"""The graph of runs of Deep Incubation (Ni et al. 2023, arXiv 2212.04129, section 3).

    meta → module_0 … module_{K-1} → assemble → finetune (→ finetune_high)

A small meta network is trained first, then each module of the network inside it, independently of
the others; joined, they are evaluated as they are and fine-tuned. ``incubate.divide`` and
``incubate.meta`` on the command line change the graph itself: the number of modules follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwerk import config
from graftwerk.config import Node
from graftwerk.errors import ConfigError
from graftwerk.models.division import Divide, Division, numbers, shape, written
from graftwerk.pipeline import Pipeline
from graftwerk.run import Run

PREFIX = "incubate."
Keys = Mapping[str, Any]


class Plan(Node):
    """Blocks of each module, of the network and of its meta network."""

    divide: Divide
    meta: Divide
    weights: Path | None = None
    """A meta network that is trained already; there is no run for it then."""


@dataclass(frozen=True)
class Phases:
    """The keys of the tree in which the runs of each phase differ from the network's own run."""

    meta: Keys
    module: Keys
    finetune: Keys
    high: Keys | None = None
    """Of a second fine-tuning, at another resolution; None: there is none."""


@dataclass(frozen=True)
class Incubation(Pipeline):
    """The pipeline of a plan, which can still be changed."""

    plan: Plan
    build: Callable[[Plan], Mapping[str, Run]]

    @classmethod
    def planned(cls, plan: Plan, build: Callable[[Plan], Mapping[str, Run]]) -> Incubation:
        return cls(build(plan), plan, build)

    def override(self, overrides: Mapping[str, Any]) -> Pipeline:
        own = {k.removeprefix(PREFIX): v for k, v in overrides.items() if k.startswith(PREFIX)}
        rest = {k: v for k, v in overrides.items() if not k.startswith(PREFIX)}
        try:
            plan = config.override(Plan, self.plan, own)
        except ConfigError as error:
            raise ConfigError([f"{PREFIX}{problem}" for problem in error.problems]) from None
        return Pipeline(self.build(plan)).override(rest)


def incubate(base: Run, plan: Plan, phases: Phases) -> dict[str, Run]:
    """The runs that make the network of `base`, whose `model.depths` must be set.

    Raises `ConfigError` where the plan does not fit it.
    """
    if shape(plan.divide) != shape(plan.meta):
        raise ConfigError(
            [
                f"incubate.meta: {written(plan.meta)} has other modules than "
                f"incubate.divide={written(plan.divide)}"
            ]
        )
    assert base.model.depths is not None
    division = Division.of(plan.divide, base.model.depths, key="incubate.divide")
    modules = [f"module_{number}" for number in range(len(plan.divide))]
    runs: dict[str, dict[str, Any]] = {}
    if plan.weights is None:
        runs["meta"] = {"model.depths": division.like(plan.meta).depths, **phases.meta}
    runs |= {
        name: {"objective": _inside_meta(base, plan, number), **phases.module}
        for number, name in enumerate(modules)
    }
    assembled = [f"run:{name}" for name in modules]
    runs["assemble"] = {"steps": 0, "model.modules": assembled}
    runs["finetune"] = {"model.pretrained": "run:assemble", **phases.finetune}
    if phases.high is not None:
        runs["finetune_high"] = {"model.pretrained": "run:finetune", **phases.high}
    return {
        name: config.override(Run, base, {"name": f"{base.name}_{name}", **keys})
        for name, keys in runs.items()
    }


def _inside_meta(base: Run, plan: Plan, index: int) -> dict[str, Any]:
    """The objective of `base` for module `index` alone."""
    return config.dump(base.objective, explicit=True) | {
        "kind": "incubate",
        "divide": plan.divide,
        "meta_divide": plan.meta,
        "index": index,
        "meta": "run:meta" if plan.weights is None else str(plan.weights),
    }


def costs(plan: Plan) -> tuple[int, int, int]:
    """What an image costs in the meta network, in all hybrids together, and in the network.

    In passes of a block: forward, gradients of the input, and gradients of the weights are 1 each.
    A frozen block costs the first before the module, and the first two behind it.
    """
    blocks, small = ([sum(m) for m in numbers(d)] for d in (plan.divide, plan.meta))
    hybrids = sum(
        sum(small[:index]) + 3 * blocks[index] + 2 * sum(small[index + 1 :])
        for index in range(len(blocks))
    )
    return 3 * sum(small), hybrids, 3 * sum(blocks)


def equal_epochs(plan: Plan, *, meta: float, module: float, finetune: float) -> float:
    """Epochs of end-to-end training that cost as much as all phases of so many epochs."""
    in_meta, in_hybrids, in_whole = costs(plan)
    return (meta * in_meta + module * in_hybrids + finetune * in_whole) / in_whole
