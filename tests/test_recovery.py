"""Too many steps left out in a row: the run goes back, leaves out what it met, and goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from doubles import Poisoned, tiny
from graftwerk.amendments import Amendments, Micro, Rollback, read
from graftwerk.axes import World
from graftwerk.errors import CheckpointError, DivergedError
from graftwerk.run import Run
from graftwerk.sparsity.config import Static
from running import differences, newest_state, only_run, records, train_here

KEYS: dict[str, Any] = {
    "steps": 9,
    "augment__mixup": 0,
    "save": "2 steps",
    "log__every": 1,
    "faults__patience": 2,
    "evaluate__every": 1000,
}


def poisoned_in(*steps: int) -> Run:
    """Each of these steps, counted from 0, has an image with an infinite loss."""
    order = tiny().build(World()).plan.order
    images = tuple(int(order.batch(step)[0, 1]) for step in steps)
    return tiny().model_copy(update={"objective": Poisoned(images=images)})


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [r for r in records(only_run(folder), "event") if r["event"] == name]


def test_goes_back_leaves_the_window_out_and_goes_on(tmp_path: Path) -> None:
    """Steps 5 and 6 are left out; the checkpoint of 4 steps goes on with the images of step 7."""
    train_here(poisoned_in(4, 5), tmp_path, **KEYS)
    (rollback,) = events(tmp_path, "rollback")
    assert (rollback["step"], rollback["to"]) == (6, 4)
    assert [event["step"] for event in events(tmp_path, "step_skipped")] == [5, 6]
    amended = read(only_run(tmp_path))
    assert amended.rollbacks == (Rollback(at=6, to=4, shift=2, precision="fp32"),)
    step, state = newest_state(only_run(tmp_path))
    assert step == 9
    assert state["order"]["position"] == tiny().build(World()).place(11)["position"]


def test_the_rest_equals_a_run_that_was_told_so(tmp_path: Path) -> None:
    """Killed at any checkpoint after it went back, the run ends with the same bits."""
    run = poisoned_in(4, 5)
    train_here(run, tmp_path / "whole", **KEYS, save__keep=9)
    for left in (4, 6, 8):
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "again")
        for entry in (only_run(tmp_path / "again") / "checkpoints").glob("step-*"):
            if int(entry.name[5:]) > left:
                shutil.rmtree(entry)
        train_here(run, tmp_path / "again", **KEYS, save__keep=9)
        states = [newest_state(only_run(tmp_path / name))[1] for name in ("whole", "again")]
        assert differences(states[0], states[1]) == []


def test_no_checkpoint_is_taken_while_steps_are_left_out(tmp_path: Path) -> None:
    """That of 4 steps is taken after step 5, the first that counts again."""
    train_here(poisoned_in(3), tmp_path, **KEYS, save__keep=9)
    saved = [Path(event["path"]).name for event in events(tmp_path, "saved")]
    assert [int(name[5:]) for name in saved] == [2, 5, 6, 8, 9]
    assert not events(tmp_path, "rollback")


@pytest.mark.parametrize(("then", "precisions", "rates"), [
    ("skip", ["bf16"] * 3, [1.0] * 3),
    ("precision", ["fp32"] * 3, [1.0] * 3),
    ("rate", ["bf16"] * 3, [0.5, 0.25, 0.125]),
])  # fmt: skip
def test_gives_up_with_a_code_of_its_own(
    tmp_path: Path, then: str, precisions: list[str], rates: list[float]
) -> None:
    run = tiny().model_copy(update={"objective": Poisoned(images=tuple(range(2000)))})
    with pytest.raises(DivergedError, match=r"from step 2 back to 0: precision=\w+, rate") as error:
        train_here(run, tmp_path, **KEYS, precision="bf16", faults__then=then)
    assert error.value.exit_code == 65
    rollbacks = read(only_run(tmp_path)).rollbacks
    assert [rollback.precision for rollback in rollbacks] == precisions
    assert [rollback.rate for rollback in rollbacks] == rates
    assert [rollback.shift for rollback in rollbacks] == [2, 4, 6]


def test_a_lower_rate_is_applied(tmp_path: Path) -> None:
    train_here(poisoned_in(4, 5), tmp_path, **KEYS, faults__then="rate", schedule="constant")
    rates = {r["step"]: r["lr"] for r in records(only_run(tmp_path), "train")}
    assert [rates[step] / rates[1] for step in range(1, 10)] == [1] * 4 + [0.5] * 5


def test_a_run_that_ends_in_nonsense_is_not_finished(tmp_path: Path) -> None:
    """The rate is absurd: all later losses are infinite, but fewer than `patience` are left."""
    keys = KEYS | {"steps": 4, "optim__lr": 1e30, "faults__patience": 50}
    with pytest.raises(DivergedError, match=r"going back has not helped"):
        train_here(tiny(), tmp_path, **keys)


def test_a_checkpoint_serves_once(tmp_path: Path) -> None:
    """What is wrong may have begun before the newest one."""
    train_here(poisoned_in(4, 5, 6, 7), tmp_path, **KEYS, save__keep=9)
    assert [event["to"] for event in events(tmp_path, "rollback")] == [4, 2]


def test_what_is_in_force_is_a_function_of_the_step() -> None:
    run = tiny()
    amended = Amendments()
    for at, to in ((57, 40), (60, 50), (60, 20)):
        amended = amended.back(run, at=at, to=to)
    assert [r.shift for r in amended.rollbacks] == [17, 27, 67]
    assert [amended.data_step(step) for step in (0, 19, 20, 45, 99)] == [0, 19, 87, 112, 166]


def test_precision_rises_as_far_as_products_go() -> None:
    run = tiny().model_copy(update={"precision": "fp16"})
    sparse = run.model_copy(
        update={"sparsity": Static(execution="semi_structured", structure="2:4", density=0.5)}
    )
    for chosen, expected in ((run, ["bf16", "fp32", "fp32"]), (sparse, ["bf16"] * 3)):
        amended = Amendments()
        for at in (5, 6, 7):
            amended = amended.back(chosen, at=at, to=0)
        assert [rollback.precision for rollback in amended.rollbacks] == expected


def test_file_of_amendments(tmp_path: Path) -> None:
    assert read(tmp_path) == Amendments()
    amended = Amendments((Rollback(5, 2, 3, "fp32", 0.5),), Micro(8, "cpu", 2, 64))
    amended.write(tmp_path)
    assert read(tmp_path) == amended
    world, run = World(size=2), tiny()
    assert amended.batch(run, world).micro == 8
    assert amended.batch(run, World()).micro == run.batch.micro
    for damage in ("", "[]", '{"rollbacks": [{"at": 1}], "micro": null}', json.dumps({})):
        (tmp_path / "faults.json").write_text(damage)
        with pytest.raises(CheckpointError, match="resume=never"):
            read(tmp_path)
