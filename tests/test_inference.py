"""A sparse run, exported in both forms, computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import doubles
from graftwerk.cli import main
from graftwerk.errors import ConfigError
from graftwerk.inference import SparseLinear, load
from running import configured, train_here


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    keys = {"steps": 4, "sparsity": "dst", "sparsity__every": 2, "sparsity__density": 0.05}
    run = configured(doubles.tiny(), folder, **keys)
    train_here(run, folder)
    return run.folder


def test_both_exports_are_the_same_network(
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for form in ("timm", "compact"):
        assert main(["export", str(run_folder), "--to", form, "--format", form]) == 0
    dense, compact = tmp_path / "timm", tmp_path / "compact"
    assert "inference.load('compact')" in capfd.readouterr().out
    assert 'load("compact")' in (compact / "README.md").read_text()
    sizes = [next(f.glob("*.safetensors")).stat().st_size for f in (dense, compact)]
    assert sizes[1] < 0.3 * sizes[0]

    images = torch.randn(3, 1, 32, 32)
    with torch.inference_mode():
        expected = timm.create_model(f"local-dir:{dense}", pretrained=True).eval()(images)
        assert torch.equal(load(dense)(images), expected)
        assert torch.equal(load(compact)(images), expected)
        csr = load(compact, "csr")
        assert any(isinstance(module, SparseLinear) for module in csr.modules())
        torch.testing.assert_close(csr(images), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(load(compact, "auto")(images), expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no exported network"):
        load(tmp_path)
