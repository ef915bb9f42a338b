"""The README's commands and programs run as they are typed, in their order, in one folder.

Three things differ, so that this is quick: `graftwerk run` gets three steps of eight small images;
data below /path/to/ is a small image folder; a Python block that begins with a file's name is that
file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from running import graftwerk

pytestmark = pytest.mark.long
README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORT = (
    "steps=3 schedule.warmup_epochs=0 batch.size=8 augment.size=32 "
    "evaluate.batch=128 log.console=lines log.tensorboard=false"
)
OURS = re.compile(r"^(graftwerk|torchrun) ")


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("crow", "wren"):
            (folder / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.jpg")


def steps(text: str) -> list[tuple[str, str]]:
    """(language, program) of each command line of ours and each Python block."""
    found: list[tuple[str, str]] = []
    for language, body in BLOCK.findall(text):
        if language == "python":
            found.append((language, body))
        else:
            found += [("sh", line) for line in body.splitlines() if OURS.match(line)]
    return found


def shortened(command: str) -> str:
    command = command.partition("  #")[0].rstrip()
    return f"{command} {SHORT}" if "graftwerk run " in command else command


def words_of(line: str, cwd: Path) -> list[str]:
    """What a shell makes of it."""
    split = ["bash", "-c", f"printf '%s\\0' {line}"]
    said = subprocess.run(split, cwd=cwd, capture_output=True, text=True, check=True).stdout
    return said.split("\0")[:-1]


def test_readme_runs_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was typed once, as `graftwerk run`, is forked from then on."""
    text = README.read_text()
    for name in set(re.findall(r"/path/to/(\w+)", text)):
        write_images(tmp_path / "data" / name)
    programs = steps(text.replace("/path/to/", f"{tmp_path}/data/"))
    assert len(programs) > 5
    bin_folder = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([bin_folder, os.environ["PATH"]]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    known: set[str] = set()
    for language, program in programs:
        file = re.match(r"# (\w+\.py)\n", program)
        if file is not None:
            (tmp_path / file[1]).write_text(program)
            continue
        typed = shortened(program) if language == "sh" else program
        family = " ".join(typed.split()[:2])
        if family in known and family.startswith("graftwerk "):
            shown = graftwerk(*words_of(typed, tmp_path)[1:], cwd=tmp_path)
        else:
            command = ["bash", "-c", typed] if language == "sh" else [sys.executable, "-c", typed]
            shown = subprocess.run(
                command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
            )
        known.add(family)
        if shown.returncode:
            pytest.fail(f"{typed}\n{shown.stdout[-2000:]}\n{shown.stderr[-4000:]}")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/config.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = README.parent / page
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert missing == []


def test_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)", README.read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
