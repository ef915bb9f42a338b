"""Who may import whom: a module imports its own package, and layers below its own; never a peer."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import graftwerk

ROOT = Path(graftwerk.__file__).parent
LAYERS = """
    __main__
    cli
    verify doctor
    launch rehearse
    start score reconstruct inference report
    recipes
    grid incubation
    fitting
    pipeline train
    observe export
    scorekeeper
    runfolder pictures recalibrate recovery regroup saving
    evaluate handover journal ledger memory watchdog
    parts
    runfile
    algorithms amendments
    run
    objectives sync sparsity data optim log
    models
    writer board
    checkpoint meter nonfinite precision samples seeding signals
    distributed
    arrival elastic
    axes files fit lock pace paths ports snapshot storage
    config
    errors
    __init__
"""
HEIGHT = {name: -row for row, names in enumerate(LAYERS.split("\n")) for name in names.split()}
UPWARDS = {("run", "amendments"), ("run", "parts"), ("run", "launch")}
"""`Run.build()` makes the live parts: inside the function, so that a tree loads without torch. The
launcher's config is part of the tree, and the launcher above it."""


def layer(module: str) -> str:
    """``graftwerk.data.folder`` → ``data``; the package itself is ``__init__``."""
    _, *inner = module.split(".")
    return inner[0] if inner else "__init__"


def imported(node: ast.AST) -> Iterator[str]:
    """The project's modules that an import statement names, wherever it stands."""
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names if name.name.startswith("graftwerk"))
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports are absolute here"
        for name in node.names:
            inner = f"{node.module}.{name.name}"
            if inner.startswith("graftwerk."):
                yield inner if is_module(inner) else str(node.module)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").exists()


def wrong_imports(source: str, importer: str) -> list[str]:
    """The imports in `source`, a module of layer `importer`, that the layers forbid."""
    found = {layer(module) for node in ast.walk(ast.parse(source)) for module in imported(node)}
    return sorted(
        other
        for other in found - {importer}
        if (importer, other) not in UPWARDS and HEIGHT[other] >= HEIGHT[importer]
    )


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_downwards(file: Path) -> None:
    importer = file.relative_to(ROOT).with_suffix("").parts[0]
    assert importer in HEIGHT, f"LAYERS does not say where {importer} belongs"
    assert wrong_imports(file.read_text(), importer) == []


@pytest.mark.parametrize(
    ("importer", "source", "wrong"),
    [
        ("sync", "def f():\n    from graftwerk.objectives.supervised import x", ["objectives"]),
        ("sparsity", "from graftwerk import train", ["train"]),
        ("data", "import graftwerk.run", ["run"]),
        ("config", "from graftwerk.data.config import Data", ["data"]),
        ("observe", "from graftwerk.export import x", ["export"]),
        ("data", "from graftwerk.data.order import Order\nfrom graftwerk import config", []),
        ("run", "from graftwerk.parts import build", []),
        ("cli", "from graftwerk import __version__", []),
    ],
)
def test_the_rule_itself(importer: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(source, importer) == wrong


def test_config_tree_and_recipes_load_without_torch() -> None:
    code = (
        "import sys; from graftwerk.recipes import shipped; from graftwerk.config import dump\n"
        "from graftwerk.pipeline import Pipeline\n"
        "found = [Pipeline.of(recipe()) for recipe in shipped().values()]\n"
        "assert all(dump(run) for pipeline in found for run in pipeline.runs.values())\n"
        "print([name for name in ('torch', 'timm', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_commands_on_data_run_without_torch(tmp_path: Path) -> None:
    for folder in ("train/ant", "train/bee", "val/ant", "val/bee"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / folder / "0.png")
    code = (
        "import sys; from graftwerk.cli import main\n"
        "for words in (['inspect', 'images'], ['pack', 'images', 'packed'], ['verify', 'packed'],\n"
        "              ['stage', 'packed', '--to', 'near']):\n"
        "    assert main(['data', *words]) == 0, words\n"
        "print([name for name in ('torch', 'torchvision', 'timm') if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert shown.stdout.splitlines()[-1] == "[]"
