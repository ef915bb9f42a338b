"""A graph of runs: what a recipe returns whose runs start from one another.

A path anywhere in the tree of a run may be ``run:NAME``, which stands for the folder of the run
NAME of the same pipeline, or ``run:NAME/FILE`` for something in it. These references are the edges
of the graph; runs that don't reach each other may be trained at the same time. Each run keeps its
own folder, so that a finished one is not trained again, and an interrupted pipeline goes on where
it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from graftwerk import config
from graftwerk.config import nearest
from graftwerk.errors import ConfigError
from graftwerk.paths import paths, with_paths
from graftwerk.run import Run

REFERENCE = "run:"
NAMES_SHOWN = 8


def referred(path: Path) -> tuple[str, Path] | None:
    """``run:NAME/FILE`` → (NAME, FILE); None where `path` is no reference."""
    text = str(path)
    if not text.startswith(REFERENCE):
        return None
    name, _, inner = text.removeprefix(REFERENCE).partition("/")
    return name, Path(inner)


@dataclass(frozen=True)
class Pipeline:
    """Runs by name, which may refer to each other."""

    runs: Mapping[str, Run]

    def __post_init__(self) -> None:
        taken = sorted(self.runs.keys() & Run.model_fields.keys()) if len(self.runs) > 1 else []
        if taken:
            raise ConfigError(
                [f"{name}: a key of the tree can't be a run's name" for name in taken]
            )

    @classmethod
    def of(cls, found: Run | Pipeline) -> Pipeline:
        """A single run is a pipeline too."""
        return cls({found.name: found}) if isinstance(found, Run) else found

    def override(self, overrides: Mapping[str, Any]) -> Pipeline:
        """The same graph with keys changed.

        A key that begins with a run's name, or with a pattern of names (``module_*.epochs=3``), is
        for these runs, any other for all of them; the more particular one counts.
        """
        configured: dict[str, Run] = {}
        problems: list[str] = []
        for name, run in self.runs.items():
            try:
                configured[name] = config.override(Run, run, self._own(name, overrides))
            except ConfigError as error:
                problems += [self._naming(name, problem) for problem in error.problems]
        if problems:
            raise ConfigError(problems)
        return Pipeline(configured)

    def _own(self, name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `overrides` that are for the run `name`, without its name."""
        levels: list[dict[str, Any]] = [{}, {}, {}]
        for key, value in overrides.items():
            first, _, rest = key.partition(".")
            if len(self.runs) == 1 or not any(fnmatchcase(one, first) for one in self.runs):
                levels[0][key] = value
            elif fnmatchcase(name, first):
                levels[2 if first == name else 1][rest] = value
        return levels[0] | levels[1] | levels[2]

    def _naming(self, name: str, problem: str) -> str:
        return problem if len(self.runs) == 1 else f"{name}.{problem}"

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """The edges: whom each run refers to. The runs come in an order in which they can be
        trained. Raises ConfigError for references to nobody, and in a circle."""
        edges: dict[str, list[str]] = {name: [] for name in self.runs}
        problems: list[str] = []
        for name, run in self.runs.items():
            for key, path in paths(run):
                other = referred(path)
                if other is None:
                    continue
                if other[0] not in self.runs:
                    problems.append(self._naming(name, f"{key}: {self._nobody(other[0])}"))
                elif other[0] not in edges[name]:
                    edges[name].append(other[0])
        if problems:
            raise ConfigError(problems)
        try:
            order = list(TopologicalSorter(edges).static_order())
        except CycleError as error:
            circle = " → ".join(reversed(error.args[1]))
            raise ConfigError([f"runs start from each other in a circle: {circle}"]) from None
        return {name: tuple(edges[name]) for name in order}

    def _nobody(self, name: str) -> str:
        hint = nearest(name, self.runs) or f"; there are: {_listed(self.runs)}"
        return f"there is no run {name!r} in this pipeline{hint}"

    def resolved(self) -> dict[str, Run]:
        """The runs as they are trained, in an order in which they can be: folders of other runs in
        the place of references."""
        found: dict[str, Run] = {}

        def folder(path: Path) -> Path:
            other = referred(path)
            return found[other[0]].folder / other[1] if other else path

        for name in self.needs:
            found[name] = with_paths(self.runs[name], folder)
        return found

    def configured(self, overrides: Mapping[str, Any]) -> dict[str, Run]:
        """The runs as they are trained, with `overrides`."""
        return self.override(overrides).resolved()

    def drawing(self) -> list[str]:
        """The graph in lines: runs of one stage that start from the same ones share a line."""
        needs, stage = self.needs, {}
        for name, others in needs.items():
            stage[name] = 1 + max((stage[other] for other in others), default=0)
        groups: dict[tuple[int, tuple[str, ...]], list[str]] = {}
        for name, others in needs.items():
            groups.setdefault((stage[name], others), []).append(name)
        rows = [(number, _listed(names), others) for (number, others), names in groups.items()]
        width = max(len(names) for _, names, _ in rows)
        return [
            f"stage {number}  {names:{width}}  ← {_listed(others)}"
            if others
            else f"stage {number}  {names}"
            for number, names, others in sorted(rows, key=lambda row: row[0])
        ]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    if len(names) <= NAMES_SHOWN:
        return ", ".join(names)
    return f"{names[0]}, {names[1]}, … {names[-1]} ({len(names)} runs)"
