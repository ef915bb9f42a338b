"""The config tree: frozen nodes, choices by kind, and `key=value` overrides.

A :class:`Node` is a frozen record whose unknown keys are errors. A :class:`Choice` is a node with
alternatives, each a subclass that names itself: ``class Gossip(Sync, kind="gossip")``. Trees are
read and changed as plain nested dictionaries ("plain trees"), so that every problem of a command
line is found in one validation and reported in one go.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from graftwerk.errors import ConfigError

Plain = dict[str, Any]
NodeT = TypeVar("NodeT", bound="Node")


class Node(BaseModel):
    """A frozen part of the config tree.

    `main` names the field that a bare value stands for: ``model=resnet50`` means
    ``model.name=resnet50`` where ``Model.main == "name"``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)
    main: ClassVar[str | None] = None

    @model_validator(mode="wrap")
    @classmethod
    def _accept_main(cls, value: Any, handler: Any) -> Self:
        if cls.main is not None and not isinstance(value, dict | Node):
            value = {cls.main: value}
        return handler(value)


class Choice(Node):
    """A node with alternatives; each subclass registers itself under its `kind`.

    A direct subclass of `Choice` opens an axis; ``class X(Axis, kind="x")`` adds an alternative.
    """

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[Choice]]]
    default_kind: ClassVar[str | None] = None

    def __init_subclass__(cls, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)  # pydantic hands `kind` to the hook below as well

    @classmethod
    def __pydantic_init_subclass__(cls, kind: str | None = None, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if Choice in cls.__bases__:
            cls.kinds = {}
        if kind is not None:
            cls.kind = kind
            cls.kinds[kind] = cls

    @model_validator(mode="wrap")
    @classmethod
    def _dispatch(cls, value: Any, handler: Any) -> Self:
        if isinstance(value, Node):
            return handler(value)
        fields = {"kind": value} if not isinstance(value, dict) else cast(Plain, value)
        kind = fields.get("kind", cls.kind or cls.default_kind)
        target = cls.kinds.get(kind) if isinstance(kind, str) else None
        if target is None or not issubclass(target, cls):
            known = ", ".join(sorted(cls.kinds))
            raise PydanticCustomError(
                "unknown_kind",
                "unknown choice {kind}{hint}; there are: {known}",
                {"kind": repr(kind), "hint": nearest(str(kind), cls.kinds), "known": known},
            )
        rest = {key: item for key, item in fields.items() if key != "kind"}
        return handler(rest) if target is cls else target.model_validate(rest)


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'lr'?"``, or an empty string where nothing is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


# ---------------------------------------------------------------- plain trees


def dump(node: Node, *, explicit: bool = False) -> Plain:
    """The plain tree of `node` in JSON types; `explicit` leaves out what was never set."""
    tree: Plain = {"kind": node.kind} if isinstance(node, Choice) else {}
    for name in type(node).model_fields:
        if not explicit or name in node.model_fields_set:
            tree[name] = _dump_value(getattr(node, name), explicit)
    return tree


def _dump_value(value: Any, explicit: bool) -> Any:
    match value:
        case Node():
            return dump(value, explicit=explicit)
        case dict():
            return {str(key): _dump_value(item, explicit) for key, item in value.items()}
        case tuple() | list():
            return [_dump_value(item, explicit) for item in value]
        case Path():
            return str(value)
        case _:
            return value


def load(cls: type[NodeT], tree: Mapping[str, Any]) -> NodeT:
    """Validate a plain tree; every problem is in the raised `ConfigError`, named by its key."""
    try:
        return cls.model_validate(dict(tree))
    except ValidationError as error:
        found: dict[str, str] = {}
        for problem in error.errors(include_url=False):
            found.setdefault(_key(problem, cls), _sentence(problem, cls, tree))
        raise ConfigError([f"{key}: {sentence}" for key, sentence in found.items()]) from None


def read(path: Path) -> Plain:
    """The plain tree of a `.json` or `.toml` file."""
    try:
        text = path.read_text()
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError([f"{path}: can't be read ({error.strerror})"]) from None
    except ValueError as error:
        raise ConfigError([f"{path}: not valid {path.suffix[1:]} ({error})"]) from None


def digest(node: Node, *, without: Iterable[str] = ()) -> str:
    """Eight hex digits of the SHA-256 of `changes`: a key that is new leaves it as it was."""
    tree = changes(node, without=without)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]


def changes(node: Node, *, without: Iterable[str] = (), prefix: str = "") -> Plain:
    """What differs from the defaults of `node`'s classes; dotted keys in `without` don't count."""

    def plain(key: str, value: Any) -> Any:
        if isinstance(value, Node):
            return changes(value, without=without, prefix=f"{key}.")
        return _dump_value(value, explicit=False)

    tree: Plain = {"kind": node.kind} if isinstance(node, Choice) else {}
    for name, field in type(node).model_fields.items():
        key = prefix + name
        value = plain(key, getattr(node, name))
        if key not in without and value != plain(key, field.get_default(call_default_factory=True)):
            tree[name] = value
    return tree


# ---------------------------------------------------------------- overrides


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """``key=value``, ``--key=value`` and ``--key value`` into {key: value}; `-` reads as `_`.

    The last value of a repeated key wins, as shells' users expect.
    """
    overrides: dict[str, Any] = {}
    problems: list[str] = []
    words = iter(words)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals and word.startswith("--"):
            following = next(words, None)
            if following is None:
                problems.append(f"{word}: a value is missing")
                continue
            text = following
        elif not equals:
            problems.append(f"{word}: expected key=value")
            continue
        overrides[key.removeprefix("--").replace("-", "_")] = parse_value(text)
    if problems:
        raise ConfigError(problems)
    return overrides


def parse_value(text: str) -> Any:
    """A JSON value where `text` is one, else Python's spelling of one, else the text itself."""
    spoken = {"True": True, "False": False, "None": None, "true": True, "false": False}
    if text in spoken:
        return spoken[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def override(cls: type[NodeT], base: NodeT, overrides: Mapping[str, Any]) -> NodeT:
    """`base` with the dotted keys of `overrides` replaced; the order of keys does not matter.

    A new kind starts from its own defaults; what the base set explicitly on the axis itself
    (not on the old kind) is kept.
    """
    tree = dump(base, explicit=True)
    for key in sorted(overrides, key=lambda key: key.count(".")):
        _put(tree, cls, key.split("."), overrides[key])
    return load(cls, tree)


def _put(tree: Plain, cls: type[Node] | None, path: list[str], value: Any) -> None:
    """Set `value` at `path`; a bare value for a node becomes its kind or its main field."""
    name, *rest = path
    child = _node_class(cls, name) if cls is not None else None
    if rest:
        if not isinstance(tree.get(name), dict):
            tree[name] = {} if tree.get(name) is None else _as_plain(child, tree[name])
        _put(tree[name], _chosen(child, tree[name]), rest, value)
    elif name == "kind" and cls is not None and issubclass(cls, Choice):
        _switch(tree, cls, value)
    elif child is not None and not isinstance(value, dict) and isinstance(tree.get(name), dict):
        if issubclass(child, Choice):
            _switch(tree[name], child, value)
        elif child.main is not None:
            tree[name][child.main] = value
        else:
            tree[name] = value
    else:
        tree[name] = value


def _switch(tree: Plain, axis: type[Choice], kind: Any) -> None:
    if tree.get("kind") == kind:
        return
    common = set(_axis_root(axis).model_fields)
    for key in [key for key in tree if key not in common]:
        del tree[key]
    tree["kind"] = kind


def _axis_root(cls: type[Choice]) -> type[Choice]:
    return next(base for base in cls.__mro__ if Choice in base.__bases__)


def _as_plain(cls: type[Node] | None, value: Any) -> Plain:
    key = "kind" if cls is not None and issubclass(cls, Choice) else (cls and cls.main)
    return {key: value} if key else {}


def _node_class(cls: type[Node], name: str) -> type[Node] | None:
    """The node class of field `name`, also where it is one arm of a union."""
    field = cls.model_fields.get(name)
    if field is None:
        return None
    return next((a for a in _arms(field.annotation) if issubclass(a, Node)), None)


def _arms(annotation: Any) -> Iterator[type]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for arm in typing.get_args(annotation):
            yield from _arms(arm)
    elif isinstance(annotation, type):
        yield annotation


def _chosen(cls: type[Node] | None, tree: Mapping[str, Any]) -> type[Node] | None:
    """The alternative that `tree` selects, or `cls` itself."""
    if cls is not None and issubclass(cls, Choice):
        return cls.kinds.get(tree.get("kind", cls.kind or cls.default_kind), cls)
    return cls


# ---------------------------------------------------------------- problems in words


def _key(problem: ErrorDetails, cls: type[Node]) -> str:
    return ".".join(_path(problem)) or cls.__name__


def _path(problem: ErrorDetails) -> list[str]:
    return [str(part) for part in problem["loc"] if not _is_union_arm(part)]


BOUNDS = {
    "less_than_equal": "should be at most {le:g}",
    "greater_than_equal": "should be at least {ge:g}",
    "less_than": "should be less than {lt:g}",
    "greater_than": "should be greater than {gt:g}",
}


def _sentence(problem: ErrorDetails, cls: type[Node], tree: Mapping[str, Any]) -> str:
    given, context = problem["input"], problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            *parents, name = _path(problem)
            return _unknown_key(_class_at(cls, tree, parents), name)
        case "missing":
            return "is required"
        case "unknown_kind" | "value_error":
            return problem["msg"].removeprefix("Value error, ")
        case "literal_error":
            near = nearest(str(given), str(context["expected"]).replace("'", "").split(", "))
            return f"should be one of {context['expected']} (got {given!r}){near}"
        case kind if kind in BOUNDS:
            return f"{BOUNDS[kind].format(**context)} (got {given!r})"
        case _:
            words = problem["msg"].removeprefix("Input ").split(", unable")[0]
            return f"{words[0].lower()}{words[1:]} (got {given!r})"


def _unknown_key(parent: type[Node] | None, name: str) -> str:
    if parent is None:
        return "unknown key"
    if issubclass(parent, Choice):
        kinds = [kind for kind, cls in parent.kinds.items() if name in cls.model_fields]
        if kinds:
            return f"is no key of kind {parent.kind!r}, but of {', '.join(kinds)}"
    return f"unknown key{nearest(name, parent.model_fields)}"


def _is_union_arm(part: int | str) -> bool:
    """Pydantic adds the names of tried union arms to a location; they are no keys."""
    arms = ("function-", "tuple[", "list[", "literal[", "constrained-", "is-instance")
    names = {"int", "float", "str", "bool", "none"}
    return isinstance(part, str) and (part in names or part.startswith(arms) or part[:1].isupper())


def _class_at(cls: type[Node], tree: Mapping[str, Any], path: list[str]) -> type[Node] | None:
    here: type[Node] | None = cls
    branch: Any = tree
    for name in path:
        here = _node_class(here, name) if here is not None else None
        branch = branch.get(name, {}) if isinstance(branch, dict) else {}
        here = _chosen(here, branch if isinstance(branch, dict) else {"kind": branch})
    return here
