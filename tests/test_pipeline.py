from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import Field

from doubles import tiny
from graftwerk.config import override
from graftwerk.data.config import Data
from graftwerk.errors import ConfigError
from graftwerk.models.config import Model
from graftwerk.models.weights import read_state_dict
from graftwerk.paths import paths
from graftwerk.pipeline import Pipeline
from graftwerk.run import Run
from graftwerk.start import derived
from running import graftwerk, newest_state, records

PAIR = """
from doubles import tiny
from graftwerk.config import override
from graftwerk.pipeline import Pipeline
from graftwerk.run import Run
from graftwerk.start import derived

def pair():
    first = override(Run, tiny(), {"name": "first", "augment.mixup": 0, "save": "1 epoch"})
    second = override(Run, first, {"name": "second", "model.pretrained": "run:first"})
    return Pipeline({"first": first, "second": second})
"""


def pair(reference: str = "run:first") -> Pipeline:
    second = Run(name="b", model=Model(pretrained=Path(reference)))
    return Pipeline({"first": Run(name="a"), "second": second})


def test_keys_are_for_all_runs_or_for_the_one_they_name() -> None:
    runs = pair().configured({"seed": 3, "second.optim.lr": 7, "first.epochs": 2})
    assert [run.seed for run in runs.values()] == [3, 3]
    assert [run.optim.lr for run in runs.values()] == [0.1, 7]
    assert [run.epochs for run in runs.values()] == [2, 90]


def test_a_reference_is_the_folder_of_the_run_as_configured() -> None:
    runs = pair().configured({"first.optim.lr": 7})
    assert runs["second"].model.pretrained == runs["first"].folder
    other = pair().configured({"first.optim.lr": 8})
    assert other["second"].folder != runs["second"].folder


def test_problems_name_the_run() -> None:
    with pytest.raises(ConfigError) as error:
        pair().configured({"optim.lrr": 1, "second.batch.size": 0})
    assert error.value.problems == [
        "first.optim.lrr: unknown key; did you mean 'lr'?",
        "second.batch.size: should be at least 1 (got 0)",
        "second.optim.lrr: unknown key; did you mean 'lr'?",
    ]


def test_patterns_of_names_are_overruled_by_names() -> None:
    runs = {name: Run(name=name) for name in ("whole", "part_0", "part_1")}
    found = Pipeline(runs).configured({"part_1.seed": 3, "part_*.seed": 2, "seed": 1})
    assert [run.seed for run in found.values()] == [1, 2, 3]


@pytest.mark.parametrize("reference", ["run:frist", "run:frist/export"])
def test_a_reference_to_nobody_is_refused(reference: str) -> None:
    with pytest.raises(ConfigError) as error:
        pair(reference).configured({})
    assert error.value.problems == [
        "second.model.pretrained: there is no run 'frist' in this pipeline; did you mean 'first'?"
    ]


def test_runs_in_a_circle_are_refused() -> None:
    runs = {
        name: Run(name=name, model=Model(pretrained=Path(f"run:{other}")))
        for name, other in (("a", "b"), ("b", "c"), ("c", "a"))
    }
    with pytest.raises(ConfigError, match=r"start from each other in a circle: . → . → . → ."):
        Pipeline(runs).configured({})


def test_a_key_of_the_tree_is_no_name() -> None:
    with pytest.raises(ConfigError, match="optim: a key of the tree can't be a run's name"):
        Pipeline({"optim": Run(name="a"), "b": Run(name="b")})


class Collected(Data, kind="collected"):
    """Paths wherever a tree may have them."""

    parts: tuple[Path, ...] = ()
    named: dict[str, Path] = Field(default_factory=dict)


def one_four_one_one() -> Pipeline:
    """Declared backwards: the order follows from the references."""
    parts = [f"part_{number}" for number in range(4)]
    whole = Collected(parts=tuple(Path(f"run:{part}/export") for part in parts))
    runs = {
        "finetune": Run(name="finetune", model=Model(pretrained=Path("run:whole"))),
        "whole": Run(name="whole", data=whole, steps=0),
    }
    for part in parts:
        named = {"meta": Path("run:meta"), "elsewhere": Path("/elsewhere")}
        runs[part] = Run(name=part, data=Collected(named=named))
    return Pipeline(runs | {"meta": Run(name="meta")})


def test_references_in_any_path_are_edges_of_a_graph() -> None:
    pipeline = one_four_one_one()
    parts = tuple(f"part_{number}" for number in range(4))
    assert pipeline.needs == {
        "meta": (),
        **dict.fromkeys(parts, ("meta",)),
        "whole": parts,
        "finetune": ("whole",),
    }
    runs = pipeline.configured({})
    assert runs["finetune"].model.pretrained == runs["whole"].folder
    assert dict(paths(runs["whole"].data)) == {
        f"parts.{number}": runs[part].folder / "export" for number, part in enumerate(parts)
    }
    assert dict(paths(runs["part_2"].data)) == {
        "named.meta": runs["meta"].folder,
        "named.elsewhere": Path("/elsewhere"),
    }


def test_a_change_reaches_the_names_of_all_that_start_from_it() -> None:
    before, after = (one_four_one_one().configured(keys) for keys in ({}, {"part_3.seed": 1}))
    changed = [name for name, run in before.items() if run.folder != after[name].folder]
    assert changed == ["part_3", "whole", "finetune"]


def test_the_graph_as_text() -> None:
    assert one_four_one_one().drawing() == [
        "stage 1  meta",
        "stage 2  part_0, part_1, part_2, part_3  ← meta",
        "stage 3  whole                           ← part_0, part_1, part_2, part_3",
        "stage 4  finetune                        ← whole",
    ]
    many = Pipeline({str(number): Run(name=f"{number}") for number in range(550)})
    assert many.drawing() == ["stage 1  0, 1, … 549 (550 runs)"]


def test_a_single_run_is_a_pipeline_too() -> None:
    run = tiny()
    assert Pipeline.of(run).configured({"seed": 1}) == {"tiny": override(Run, run, {"seed": 1})}


def test_runs_follow_each_other_once(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(PAIR)
    words = ["run", "recipe.py", "steps=2", "second.optim.lr=0"]
    for processes, finished in ((2, 0), (1, 2)):
        done = graftwerk(*words, f"processes={processes}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("is finished") == finished
    first, second = (next((tmp_path / "runs").glob(f"{name}-*")) for name in ("first", "second"))
    assert len(records(second, "train")) == 1
    _, state = newest_state(second)
    loaded = read_state_dict(first)
    for name, tensor in loaded.items():
        assert torch.equal(tensor, state["parts"]["objective"][f"net.{name}"]), name


def test_show_tells_of_weights_that_are_not_there_yet() -> None:
    run = tiny().model_copy(
        update={"model": Model(name="test_convnext", pretrained=Path("no/run"))}
    )
    assert derived(run, 1)["model.pretrained"] == "no/run does not exist yet"
