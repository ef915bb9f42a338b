from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graftwerk.log.density import draw

SEED = 12


def records(num_layers: int, num: int = 5, *criteria: str) -> list[dict[str, Any]]:
    rng = random.Random(SEED)
    lines: list[dict[str, Any]] = [{"at": 0.0, "loss": 1.0}]
    for number in range(num):
        line: dict[str, Any] = {"at": float(number), "density": 0.1, "exploration": 0.5}
        line |= {f"density/layer{i}": rng.uniform(0.01, 1) for i in range(num_layers)}
        if number > 0:  # nothing is compared before the first update
            line |= {f"jaccard/snip-{name}": rng.random() for name in criteria}
            pairs = [name for name in line if name.startswith("jaccard/")]
            line |= {f"{p}/layer{i}": rng.random() for p in pairs for i in range(num_layers)}
        lines.append(line)
    return lines


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        assert np.asarray(image.convert("L")).std() > 5
        return image.size


@pytest.mark.parametrize("num_layers", [1, 8, 54])
@pytest.mark.parametrize("num", [1, 5])
def test_any_number_of_layers_and_records(num_layers: int, num: int, tmp_path: Path) -> None:
    draw(tmp_path / "sparsity.png", "x", records(num_layers, num))
    width, height = size(tmp_path / "sparsity.png")
    assert width > 2 * height


@pytest.mark.parametrize("num_layers", [3, 54])
def test_compared_criteria_have_panels_of_their_own(num_layers: int, tmp_path: Path) -> None:
    lines = records(num_layers, 5, "magnitude", "set")
    draw(tmp_path / "sparsity.png", "x", lines)
    width, height = size(tmp_path / "sparsity.png")
    assert width < 1.2 * height
    for line in lines:  # of a log that has pooled overlaps alone
        for name in [name for name in line if name.count("/") == 2]:
            del line[name]
    draw(tmp_path / "sparsity.png", "x", lines)
    width, height = size(tmp_path / "sparsity.png")
    assert 1.2 * height < width < 2 * height


def test_a_dense_run_has_no_such_picture(tmp_path: Path) -> None:
    draw(tmp_path / "sparsity.png", "x", [{"at": 0.0, "loss": 1.0}])
    assert list(tmp_path.iterdir()) == []
