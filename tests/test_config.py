from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from graftwerk import config
from graftwerk.config import Choice, Node, override, parse_overrides
from graftwerk.errors import ConfigError


class Sync(Choice):
    default_kind = "allreduce"
    payload: int = 32


class AllReduce(Sync, kind="allreduce"):
    bucket: int = 25


class Gossip(Sync, kind="gossip"):
    topology: Literal["ring", "complete"] = "ring"


class Model(Node):
    main = "name"
    name: str = "resnet18"
    drop: float | None = Field(default=None, ge=0, lt=1)


class Tree(Node):
    model: Model = Model()
    sync: Sync = AllReduce()
    lr: float = Field(default=0.1, ge=0)
    size: int | tuple[int, int] = 224
    folder: Path = Path("runs")


def changed(*words: str, base: Tree | None = None) -> Tree:
    return override(Tree, base or Tree(), parse_overrides(words))


def problems(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        changed(*words)
    return caught.value.problems


def test_spellings_of_an_override_mean_the_same() -> None:
    spellings = [["model.drop=0.5"], ["--model.drop=0.5"], ["--model.drop", "0.5"]]
    assert {changed(*words).model.drop for words in spellings} == {0.5}
    assert parse_overrides(["--label-smoothing", "1"]) == {"label_smoothing": 1}


@pytest.mark.parametrize(
    "words", list(permutations(["sync=gossip", "sync.topology=complete", "sync.payload=8"]))
)
def test_order_of_overrides_does_not_matter(words: tuple[str, ...]) -> None:
    assert changed(*words).sync == Gossip(topology="complete", payload=8)


def test_last_of_a_repeated_key_wins() -> None:
    assert changed("lr=1", "lr=2").lr == 2


def test_new_kind_keeps_what_was_set_on_the_axis_and_drops_the_old_kinds_own() -> None:
    base = Tree(sync=AllReduce(payload=16, bucket=99))
    assert changed("sync=gossip", base=base).sync == Gossip(payload=16)
    assert changed("sync=allreduce", base=base).sync == base.sync


def test_bare_value_sets_the_main_field_and_keeps_the_others() -> None:
    base = Tree(model=Model(drop=0.25))
    assert changed("model=vit_tiny", base=base).model == Model(name="vit_tiny", drop=0.25)


def test_values_read_as_json_python_or_text() -> None:
    values = {"1": 1, "1e-3": 1e-3, "[1,2]": [1, 2], "None": None, "null": None, "True": True}
    assert {text: config.parse_value(text) for text in values} == values
    assert config.parse_value("rand-m9") == "rand-m9"
    assert changed("model=7").model.name == "7"


def test_every_problem_is_named_at_once_by_its_full_key() -> None:
    found = problems("lr=-1", "model.drop=7", "sync=gosip", "modle=x", "sync.bucket=1", "size=a")
    assert "lr: should be at least 0 (got -1)" in found
    assert "model.drop: should be less than 1 (got 7)" in found
    assert any(
        line.startswith("sync: unknown choice 'gosip'; did you mean 'gossip'") for line in found
    )
    assert "modle: unknown key; did you mean 'model'?" in found
    assert "size: should be a valid integer (got 'a')" in found
    assert len(found) == 5


def test_key_of_another_kind_says_whose_it_is() -> None:
    assert problems("sync.topology=ring") == [
        "sync.topology: is no key of kind 'allreduce', but of gossip"
    ]


def test_wrong_literal_suggests_the_nearest() -> None:
    (line,) = problems("sync=gossip", "sync.topology=rnig")
    assert line.startswith("sync.topology: should be one of 'ring' or 'complete' (got 'rnig')")


def test_words_that_are_no_override_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["lr", "=", "--flag"])
    assert caught.value.problems[0] == "lr: expected key=value"
    assert "--flag: a value is missing" in caught.value.problems


@pytest.mark.parametrize(
    "tree",
    [Tree(), Tree(sync=Gossip(topology="complete"), size=(64, 32), model=Model(drop=0.1))],
)
def test_dump_reloads_equal(tree: Tree, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config.dump(tree)))
    assert config.load(Tree, config.read(path)) == tree


def test_toml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tree.toml"
    path.write_text('lr = 0.5\nmodel = "vgg11"\n[sync]\nkind = "gossip"\n')
    assert config.load(Tree, config.read(path)) == Tree(
        lr=0.5, model=Model(name="vgg11"), sync=Gossip()
    )


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("a.toml", "x ="), ("b.json", None)])
def test_unreadable_file_is_named(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        config.read(tmp_path / name)


def test_digest_changes_with_the_tree_and_only_with_what_counts() -> None:
    assert config.digest(Tree()) == config.digest(Tree(lr=0.1))
    assert config.digest(Tree()) != config.digest(Tree(lr=0.2))
    without = ("lr", "sync.payload")
    other = Tree(lr=0.2, sync=AllReduce(payload=1))
    assert config.digest(Tree(), without=without) == config.digest(other, without=without)


def test_changes_are_what_differs_from_the_defaults() -> None:
    assert config.changes(Tree()) == {}
    assert config.changes(Tree(lr=0.2, folder=Path("x"))) == {"lr": 0.2, "folder": "x"}
    assert config.changes(Tree(sync=AllReduce(payload=8))) == {
        "sync": {"kind": "allreduce", "payload": 8}
    }
    assert config.changes(Tree(sync=Gossip())) == {"sync": {"kind": "gossip"}}
    assert config.changes(Tree(sync=AllReduce(payload=8)), without=["sync.payload"]) == {}


def test_a_digest_outlives_new_keys() -> None:
    class Larger(Tree):
        momentum: float = 0.9

    for lr in (0.1, 0.2):
        assert config.digest(Larger(lr=lr)) == config.digest(Tree(lr=lr))
    assert config.digest(Larger(momentum=0.8)) != config.digest(Tree())


def test_nodes_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Tree().lr = 1.0  # pyright: ignore[reportAttributeAccessIssue]
