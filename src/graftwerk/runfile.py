"""`run.json`: the tree of a run on the disk, and beside it where kinds of a user's own are defined.

A recipe may define kinds (``class Mine(Data, kind="mine")``). A tree names them, and a process that
reads the tree must know them first: `kinds.json` has the modules of their classes by name,
``{"recipe": "/path/to/recipe.py"}``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from graftwerk import config
from graftwerk.config import Node
from graftwerk.errors import ConfigError
from graftwerk.paths import frozen, thawed
from graftwerk.run import HOW_NOT_WHAT, Run

KINDS = "kinds.json"
LOADED: set[Path] = set()
"""The files that this process has run as modules."""


def contents(run: Run) -> dict[str, str]:
    """By name, the files that `read` needs; `kinds.json` only where a class is not graftwerk's."""
    files = {"run.json": json.dumps(config.dump(run), indent=2)}
    modules = {name: str(file) for name, file in kinds(run).items()}
    return {**({KINDS: json.dumps(modules, indent=1)} if modules else {}), **files}


def kinds(run: Run) -> dict[str, Path]:
    """By name, the files of the modules that define the run's own kinds; a console has no file."""
    modules = {name: sys.modules.get(name) for name in sorted(set(_foreign(run)))}
    files = {name: _path(module) for name, module in modules.items() if module is not None}
    return {name: thawed(file) for name, file in files.items() if file is not None}


def read(folder: Path) -> Run:
    """The run whose `run.json` is in `folder`.

    Raises ConfigError for what is missing or damaged, a module of its kinds included.
    """
    if (folder / KINDS).exists():
        for module, file in config.read(folder / KINDS).items():
            _recall(folder, module, file)
    return config.load(Run, config.read(folder / "run.json"))


def check_defaults(run: Run) -> None:
    """Defaults don't count in the folder's name; a version that changed one must not go on.

    Raises ConfigError where the folder's run was begun when defaults were others.
    """
    if not (run.folder / "run.json").exists():
        return
    began, now = (
        _leaves({key: value for key, value in tree.items() if key not in HOW_NOT_WHAT})
        for tree in (config.read(run.folder / "run.json"), config.dump(run))
    )
    if problems := [
        f"{key}: {run.folder} was begun with {began[key]!r}, this version's default is {value!r}; "
        "go on with the version that began it, or start anew with resume=never"
        for key, value in now.items()
        if key in began and began[key] != value and key not in HOW_NOT_WHAT
    ]:
        raise ConfigError(problems)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted keys."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        found |= {prefix + name: value} if inner is None else inner
    return found


def load_module(file: Path) -> ModuleType:
    """Run a Python file as a module; what lies beside it can be imported by it.

    It is called by the file's name, and by one of its own where another module is called so. A file
    that is a module by that name already is not run again: its kinds would take the place of those
    that objects were made of.
    """
    file = file.absolute()
    name = file.stem
    if (known := sys.modules.get(name)) is not None and _path(known) != file:
        name = f"{name}_{hashlib.sha256(os.fsencode(file)).hexdigest()[:8]}"
    if (known := sys.modules.get(name)) is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    _search(file.parent)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    LOADED.add(file)
    return module


def _recall(folder: Path, module: str, file: str) -> None:
    """Import a module that defines kinds, unless this process has it."""
    there = frozen(Path(file))
    known = sys.modules.get(module)
    if there in LOADED or (known is not None and _path(known) == there):
        return
    is_package = there.name == "__init__.py"
    if there.exists() and "." not in module and not is_package:
        load_module(there)
        return
    if there.exists():
        _search(there.parents[module.count(".") + is_package])
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            [
                f"{folder}: its kinds are defined in {file}: {error}; put it back, or correct "
                f"{folder / KINDS}"
            ]
        ) from None


def _search(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _foreign(value: Any) -> Iterator[str]:
    """The modules, other than graftwerk's own, of the nodes below `value`."""
    if isinstance(value, Node):
        module = type(value).__module__
        if module.partition(".")[0] != "graftwerk":
            yield module
        for name in type(value).model_fields:
            yield from _foreign(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _foreign(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _foreign(item)


def _path(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).absolute() if file else None
