"""The keys of a config tree whose values are paths; and where files of code are in a job."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from graftwerk.config import Node

NodeT = TypeVar("NodeT", bound=Node)
SNAPSHOT = "GRAFTWERK_SNAPSHOT"
"""The environment variable that names the copy of the working directory which a job runs."""


def paths(node: Node) -> Iterator[tuple[str, Path]]:
    """(dotted key, path) of every path below `node`; elements of lists and mappings count as keys.

    ``objective.modules.0`` is the first of a list of paths.
    """
    for name in type(node).model_fields:
        yield from _paths(getattr(node, name), name)


def _paths(value: Any, key: str) -> Iterator[tuple[str, Path]]:
    match value:
        case Path():
            yield key, value
        case Node():
            yield from ((f"{key}.{inner}", path) for inner, path in paths(value))
        case tuple() | list():
            for number, item in enumerate(value):
                yield from _paths(item, f"{key}.{number}")
        case dict():
            for name, item in value.items():
                yield from _paths(item, f"{key}.{name}")
        case _:
            pass


def with_paths(node: NodeT, change: Callable[[Path], Path]) -> NodeT:
    """`node` with ``change(path)`` in the place of every path below it."""
    before = {name: getattr(node, name) for name in type(node).model_fields}
    after = {name: _changed(value, change) for name, value in before.items()}
    update = {name: value for name, value in after.items() if value != before[name]}
    return node.model_copy(update=update)


def _changed(value: Any, change: Callable[[Path], Path]) -> Any:
    match value:
        case Path():
            return change(value)
        case Node():
            return with_paths(value, change)
        case tuple() | list() if not hasattr(value, "_fields"):
            return type(value)(_changed(item, change) for item in value)
        case dict():
            return {name: _changed(item, change) for name, item in value.items()}
        case _:
            return value


def frozen(path: Path) -> Path:
    """A file of code as it was when the job was submitted; itself where no snapshot has it."""
    snapshot, absolute = os.environ.get(SNAPSHOT), path.absolute()
    if snapshot is None or not absolute.is_relative_to(Path.cwd()):
        return path
    copy = Path(snapshot) / absolute.relative_to(Path.cwd())
    return copy if copy.exists() else path


def thawed(path: Path) -> Path:
    """The file of which `path` is a snapshot's copy; itself where it is none."""
    snapshot = os.environ.get(SNAPSHOT)
    if snapshot is None or not path.is_relative_to(snapshot):
        return path
    return Path.cwd() / path.relative_to(snapshot)
