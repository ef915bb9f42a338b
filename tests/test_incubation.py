"""The whole graph, 1 → 4 → 1 → 1 runs, from the command line, killed on its way."""

from __future__ import annotations

import signal
from pathlib import Path

from graftwerk.recipes import find_pipeline
from graftwerk.start import derived
from running import Forked, differences, graftwerk, newest_state, train_here, until

RECIPE = """
from doubles import tiny
from graftwerk.config import override
from graftwerk.incubation import Incubation, Phases, Plan, incubate
from graftwerk.run import Run

def graph():
    whole = override(Run, tiny(), {
        "model": {"name": "test_vit", "depths": [4]}, "augment.mixup": 0, "ema": {},
        "save": "1 step", "steps": 4, "evaluate.every": 10,
    })
    phases = Phases(meta={"steps": 2}, module={}, finetune={})
    return Incubation.planned(
        Plan(divide=(1, 1, 1, 1), meta=(1, 1, 1, 1)), lambda plan: incubate(whole, plan, phases)
    )
"""


def test_killed_and_started_again_it_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the second module; all runs end as those of a graph that nobody killed."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    words, out = ["run", "recipe.py", "log.tensorboard=false"], tmp_path / "out"
    with Forked(*words, out=out, cwd=tmp_path) as process:
        second = "runs/*module_1-*/checkpoints/step-*"
        until(lambda: [*tmp_path.glob(second)], process, out.read_text)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = graftwerk(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is finished") >= 2
    pipeline = find_pipeline(f"{tmp_path / 'recipe.py'}:graph")
    keys = {"log.folder": str(tmp_path / "again"), "log.console": "quiet"}
    for name, run in pipeline.configured({**keys, "log.tensorboard": False}).items():
        train_here(run, tmp_path / "again")
        (killed,) = tmp_path.glob(f"runs/*_{name}-*")
        states = [newest_state(folder)[1]["parts"] for folder in (killed, run.folder)]
        assert differences(*states) == [], name


def test_show_says_what_is_not_trained_yet(tmp_path: Path) -> None:
    runs = find_pipeline("incubate_digits").configured({"log.folder": str(tmp_path)})
    module, assembled = (derived(runs[name], 1) for name in ("module_1", "assemble"))
    meta = runs["meta"].folder
    assert module["objective.meta"] == f"{meta} does not exist yet"
    assert "trainable" not in module
    assert assembled["model.modules.2"] == f"{runs['module_2'].folder} does not exist yet"
    block = 12 * 64**2 + 13 * 64
    whole, hybrid = (int(facts["parameters"].replace(",", "")) for facts in (assembled, module))
    assert whole - hybrid == 3 * block
