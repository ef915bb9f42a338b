"""Incubated modules joined to one network (Ni et al. 2023): module i comes from run i."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from graftwerk import config
from graftwerk.errors import CheckpointError, ConfigError
from graftwerk.models.config import Model
from graftwerk.models.division import Divide, Division, hybrid, written
from graftwerk.models.stages import Layout, State, layout
from graftwerk.models.weights import META, load_exactly, net_of, read_finished, read_stages

SAME = ("name", "depths", "norm_eps", "args")
"""Keys of `model` in which the modules' runs and the assembled network agree."""


@dataclass(frozen=True)
class Incubated:
    """What the run.json of a module's run says of it."""

    path: Path
    index: int
    divide: Divide
    meta_divide: Divide
    model: dict[str, Any]

    def read(self, places: Layout, depths: Sequence[int]) -> tuple[State, str]:
        """The module's tensors, and the digest of the meta network in which they learned."""
        parts = read_finished(self.path)
        whole = Division.of(self.divide, depths, key="model.modules")
        inside = whole.like(hybrid(self.meta_divide, self.divide, self.index))
        return places.split(net_of(parts), inside)[self.index], parts["objective"]["_extra_state"][
            META
        ]


def assemble(net: nn.Module, model: Model) -> None:
    """Load `model.modules` into `net`, in place.

    Raises `ConfigError` where they are not the modules of this network in their order, or learned
    in different meta networks; `CheckpointError` where one has not finished or does not fit.
    """
    places = layout(net)
    missing = [path for path in model.modules if not path.exists()]
    if missing:
        raise ConfigError([f"model.modules: {path} does not exist" for path in missing])
    if all((path / "run.json").exists() for path in model.modules):
        modules = _of_runs([_incubated(path) for path in model.modules], model, places)
    else:
        modules = _of_files(model.modules)
    load_exactly(net, places.join(modules), "model.modules")


def _of_runs(runs: Sequence[Incubated], model: Model, places: Layout) -> list[State]:
    problems = [f"model.modules: {problem}" for problem in _mismatches(runs, model)]
    if problems:
        raise ConfigError(problems)
    modules, digests = zip(*(run.read(places, places.depths) for run in runs), strict=True)
    for run, digest in zip(runs, digests, strict=True):
        if digest != digests[0]:
            raise ConfigError(
                [
                    f"model.modules: {run.path} learned in another meta network than "
                    f"{runs[0].path}; train all modules in the same one"
                ]
            )
    return list(modules)


def _mismatches(runs: Sequence[Incubated], model: Model) -> Iterator[str]:
    first, wanted = runs[0], config.dump(model)
    for place, run in enumerate(runs):
        if run.divide != first.divide:
            yield (
                f"{run.path} is of the division {written(run.divide)}, and {first.path} of "
                f"{written(first.divide)}"
            )
        elif run.index != place:
            yield (
                f"{run.path} is module {run.index} and stands in place {place}; "
                "name them in their order, from 0"
            )
        for key in SAME:
            if run.model.get(key) != wanted[key]:
                yield (
                    f"{run.path} is of a network with model.{key}={run.model.get(key)}, and here "
                    f"it is {wanted[key]}"
                )
    absent = set(range(len(first.divide))) - {run.index for run in runs}
    if absent:
        numbers = ", ".join(map(str, sorted(absent)))
        yield f"the division {written(first.divide)} also has module {numbers}, which is missing"


def _incubated(path: Path) -> Incubated:
    tree = config.read(path / "run.json")
    objective = tree["objective"]
    if objective["kind"] != "incubate":
        raise ConfigError(
            [
                f"model.modules: {path} is no module, but a run with "
                f"objective={objective['kind']}; model.pretrained takes whole networks"
            ]
        )
    divide, meta_divide = (
        TypeAdapter[Divide](Divide).validate_python(objective[key])
        for key in ("divide", "meta_divide")
    )
    return Incubated(path, objective["index"], divide, meta_divide, tree["model"])


def _of_files(paths: Sequence[Path]) -> list[State]:
    """Published checkpoints don't say which module they are of: file i gives module i."""
    modules: list[State] = []
    for place, path in enumerate(paths):
        if path.is_dir():
            raise ConfigError(
                [f"model.modules: {path} is a folder and others are files; name one kind only"]
            )
        stages = read_stages(path)
        if not stages:
            raise CheckpointError(
                f"model.modules: {path} has no modules (model_stages); "
                "model.pretrained takes whole networks"
            )
        if len(stages) != len(paths):
            raise ConfigError(
                [f"model.modules: {path} is of {len(stages)} modules, and {len(paths)} are named"]
            )
        modules.append(stages[place])
    return modules
