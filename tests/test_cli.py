from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graftwerk.cli import main
from running import PYTHON, TINY, graftwerk, only_run, records


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a refused command says on stderr; without a traceback."""
    assert main(words) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    return shown.err


@pytest.mark.parametrize("words", [["--help"], ["show", "--help"], ["run", "--help"]])
def test_help_imports_neither_torch_nor_pydantic(words: list[str]) -> None:
    code = (
        "import sys\nfrom graftwerk.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'pydantic', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
    assert "usage: graftwerk" in shown.stdout


def test_recipes_are_listed_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert any(line.startswith("digits ") and len(line) > 30 for line in listed.splitlines())


def test_all_problems_of_a_command_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "digits", "optim.lrr=1", "objective.smoothing=7", "sync=allreduse", "epochs=0"]
    said = refused(capsys, *words).splitlines()
    assert "optim.lrr: unknown key; did you mean 'lr'?" in said
    assert "objective.smoothing: should be less than 1 (got 7)" in said
    assert "epochs: should be greater than 0 (got 0)" in said
    assert any("did you mean 'allreduce'" in line for line in said)
    assert len(said) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digit"], "digit: unknown recipe; did you mean 'digits'?"),
        (["digits", "model=resnt18"], "model.name: "),
        (["digits", "optim=sgdd"], "optim.name: "),
        (["digits", "model.args.depht=1"], "model.args"),
        (["digits", "batch=5000"], "batch.size: "),
        (["digits", "batch=64", "batch.micro=7"], "batch.micro: "),
        (["digits", "augment.mixup=1", "batch.micro=1"], "batch.micro: "),
        (["digits", "schedule.warmup_epochs=99"], "schedule.warmup_epochs: "),
        (["digits", "augment.policy=rand-foo"], "augment.policy: "),
        (["digits", "data=folder", "data.path=/nowhere"], "/nowhere"),
        (["digits", "model.pretrained=/nowhere.pth"], "model.pretrained: /nowhere.pth"),
        (["digits", "optim.layer_groups=convnext", "optim.layer_decay=0.5"], "optim.layer_groups"),
        (["digits", "device=cuda"], "device: "),
        (["missing.toml"], "missing.toml: "),
        (["missing.py"], "missing.py: "),
        (["digits", "lr"], "lr: expected key=value"),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "run", *words)


def test_show_prints_every_key_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "digits", "batch=32", "batch.micro=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"optim.name = sgd", "sync = allreduce", "batch.size = 32"} <= set(lines)
    derived = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in lines if "  " in line}
    assert derived["effective batch"] == "32 = 1 process × 4 micro-batches × 8 images"
    assert derived["classes"] == "10"
    assert derived["steps"].startswith("660 ")
    assert int(derived["parameters"].replace(",", "")) > 1_000_000


def test_show_without_data_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "digits", "data=folder", "data.path=/nowhere"]) == 0
    assert "can't be opened: /nowhere" in capsys.readouterr().out


def test_config_files_and_python_files_are_recipes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    toml, script = tmp_path / "mine.toml", tmp_path / "mine.py"
    toml.write_text('name = "mine"\nmodel = "resnet10t"\n[augment]\nsize = 32\n')
    script.write_text(
        "from graftwerk.run import Run\n"
        "def one():\n    return Run(name='one')\n"
        "def two():\n    return Run(name='two')\n"
    )
    for recipe, name in ((str(toml), "mine"), (f"{script}:two", "two")):
        assert main(["show", recipe]) == 0
        assert f"name = {name}" in capsys.readouterr().out
    assert "one, two" in refused(capsys, "show", str(script))


def images(folder: Path, count: int = 6) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.jpg")


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_fatal_or_skipped_by_name(tmp_path: Path, workers: int) -> None:
    images(tmp_path / "pets")
    (tmp_path / "pets/train/cat/3.jpg").write_bytes(b"\xff\xd8 no image")
    words = [
        "run",
        TINY,
        "data=folder",
        "data.path=pets",
        "data.mode=rgb",
        "batch=4",
        "batch.micro=4",
    ]
    words += [f"data.workers={workers}", "epochs=1", "augment.mixup=0"]
    fatal = graftwerk(*words, cwd=tmp_path)
    assert fatal.returncode == 2
    assert "3.jpg" in fatal.stderr
    assert "Traceback" not in fatal.stderr
    skipped = graftwerk(*words, "data.on_error=skip", cwd=tmp_path)
    assert skipped.returncode == 0, skipped.stderr
    folders = [path for path in (tmp_path / "runs").iterdir() if (path / "metrics.csv").exists()]
    (event,) = (r for f in folders for r in records(f, "event") if r["event"] == "image_skipped")
    assert "3.jpg" in event["reason"]


def test_evaluate_and_export_what_was_trained(tmp_path: Path) -> None:
    words = [TINY, "augment.mixup=0", "log.folder=runs", "epochs=2"]
    assert graftwerk("run", *words, cwd=tmp_path).returncode == 0
    run = only_run(tmp_path / "runs")
    row = (run / "metrics.csv").read_text().splitlines()
    logged = dict(zip(row[0].split(","), map(float, row[-1].split(",")), strict=True))
    shown = graftwerk("evaluate", str(run), "--json", "--checkpoint", "last", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    scores = json.loads(shown.stdout)
    assert scores["loss"] == logged["eval_loss"]
    assert scores["ema_top1"] == logged["ema_top1"]

    done = graftwerk("export", str(run), "--to", "out", "--checkpoint", "last", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = graftwerk("evaluate", "out", "--recipe", TINY, "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["loss"] == pytest.approx(logged["ema_loss"], rel=1e-6)
    last = ["--json", "--checkpoint", "last", "evaluate.batch=7"]
    two = graftwerk("evaluate", str(run), *last, cwd=tmp_path)
    assert json.loads(two.stdout)["loss"] == pytest.approx(scores["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "nowhere"], "nowhere: no such file or folder"),
        (["export", "nowhere", "--to", "x"], "nowhere: no run folder"),
        (["export", ".", "--to", "x", "a=b"], "a=b: not understood here"),
    ],
)
def test_commands_after_training_name_what_is_missing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *words)


def test_no_room_for_a_checkpoint_ends_the_run_with_the_old_one_intact(tmp_path: Path) -> None:
    """The kernel refuses files beyond 1 MiB; the checkpoints need more."""
    assert graftwerk("run", TINY, "steps=2", "log.folder=runs", cwd=tmp_path).returncode == 0
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))\n"
        "from graftwerk.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    words = ["run", TINY, "steps=4", "log.folder=small", "save.patience=1"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env=os.environ | PYTHON,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 74, done.stderr
    assert "checkpoint of step 4 not saved" in done.stderr
    assert "Traceback" not in done.stderr
