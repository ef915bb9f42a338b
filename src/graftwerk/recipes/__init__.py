"""Recipes: Python functions that return a whole experiment, one run or a pipeline of runs.

A file here holds one paper or task; its header states the command, what it costs and the number
to expect. A recipe of your own is a function in any Python file:
``graftwerk run my_recipes.py:small``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from graftwerk import runfile
from graftwerk.config import load, nearest, read
from graftwerk.errors import ConfigError
from graftwerk.pipeline import Pipeline
from graftwerk.run import Run

Recipe = Callable[[], Run | Pipeline]
RecipeT = TypeVar("RecipeT", bound=Recipe)
SHIPPED: dict[str, Recipe] = {}


def recipe(function: RecipeT) -> RecipeT:
    """Ship `function` under its own name; its docstring's first line is the list's entry."""
    SHIPPED[function.__name__] = function
    return function


def shipped() -> dict[str, Recipe]:
    """All recipes of this package, by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(SHIPPED.items()))


def summary(function: Recipe) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def find(name: str) -> Run:
    """The one run that `name` stands for (`find_pipeline`); refuses a pipeline of several."""
    runs = find_pipeline(name).runs
    if len(runs) > 1:
        raise ConfigError([f"{name}: is a pipeline of {', '.join(runs)}; one run is needed here"])
    return next(iter(runs.values()))


def find_pipeline(name: str) -> Pipeline:
    """The experiment that `name` stands for; a single run is a pipeline too.

    In this order: a `.json` or `.toml` file; a run folder (its `run.json`); `FILE.py` or
    `FILE.py:FUNCTION`; a shipped recipe.
    """
    path = Path(name)
    if path.suffix in (".json", ".toml"):
        return Pipeline.of(load(Run, read(path)))
    if (path / "run.json").exists():
        return Pipeline.of(runfile.read(path))
    file, _, function = name.partition(":")
    if file.endswith(".py"):
        return Pipeline.of(_from_file(Path(file), function))
    recipes = shipped()
    if name not in recipes:
        raise ConfigError(
            [f"{name}: unknown recipe{nearest(name, recipes)}; `graftwerk recipes` lists them"]
        )
    return Pipeline.of(recipes[name]())


def _from_file(file: Path, function: str) -> Run | Pipeline:
    if not file.exists():
        raise ConfigError([f"{file}: no such file"])
    module = runfile.load_module(file)
    found: dict[str, Recipe] = {
        name: item
        for name, item in vars(module).items()
        if inspect.isfunction(item) and item.__module__ == module.__name__ and name[0] != "_"
    }
    if function in found:
        return found[function]()
    if not function and len(found) == 1:
        return next(iter(found.values()))()
    raise ConfigError(
        [f"{file}: name one of its functions, as {file}:FUNCTION ({', '.join(found) or 'none'})"]
    )
