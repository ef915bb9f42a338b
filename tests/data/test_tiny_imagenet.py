from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from graftwerk.data.config import TinyImageNet
from graftwerk.errors import DataError

CLASSES = ("n01443537", "n01629819")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three images, two of which are validated on, in the published layout."""
    for number, name in enumerate(CLASSES):
        folder = tmp_path / "train" / name / "images"
        folder.mkdir(parents=True)
        (folder.parent / f"{name}_boxes.txt").write_text("")
        for i in range(3):
            Image.new("RGB", (64, 64), (number, i, 0)).save(folder / f"{name}_{i}.JPEG")
    (tmp_path / "val" / "images").mkdir(parents=True)
    lines = [f"val_{i}.JPEG\t{CLASSES[1 - i]}\t0\t32\t44\t62" for i in range(2)]
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    for i in range(2):
        Image.new("RGB", (64, 64)).save(tmp_path / "val" / "images" / f"val_{i}.JPEG")
    (tmp_path / "test" / "images").mkdir(parents=True)
    return tmp_path


def test_the_published_layout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_IMAGENET", str(root))
    splits = TinyImageNet().open(seed=0)
    assert splits.classes == CLASSES
    assert splits.train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.val.targets.tolist() == [1, 0]
    assert splits.val.name(0).endswith("val/images/val_0.JPEG")
    raw, target = splits.val.read(1)
    assert isinstance(raw, bytes)
    assert target == 0


def test_holdout_is_of_each_class_and_leaves_the_published_split_alone(root: Path) -> None:
    splits = TinyImageNet(path=root, holdout=0.4).open(seed=0)
    assert splits.train.targets.tolist() == [0, 0, 1, 1]
    assert splits.val.targets.tolist() == [0, 1]
    parts = (splits.train, splits.val)
    names = {part.name(i) for part in parts for i in range(len(part))}
    assert len(names) == 6
    assert all("/train/" in name for name in names)
    other = TinyImageNet(path=root, holdout=0.4).open(seed=1)
    assert [other.val.name(i) for i in (0, 1)] == [splits.val.name(i) for i in (0, 1)]


def test_validation_images_sorted_into_folders(root: Path) -> None:
    (root / "val" / "val_annotations.txt").unlink()
    for i in range(2):
        folder = root / "val" / CLASSES[1 - i]
        folder.mkdir()
        (root / "val" / "images" / f"val_{i}.JPEG").rename(folder / f"val_{i}.JPEG")
    (root / "val" / "images").rmdir()
    assert TinyImageNet(path=root).open(seed=0).val.targets.tolist() == [0, 1]


def test_what_is_wrong_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINY_IMAGENET", raising=False)
    with pytest.raises(DataError, match="set TINY_IMAGENET"):
        TinyImageNet().open(0)
    (root / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_1.JPEG: is listed in .* and missing \(1 such\)"):
        TinyImageNet(path=root).open(0)
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn9\t0\t0\t0\t0\n")
    with pytest.raises(DataError, match=r"val_annotations.txt:1: train/ has no class 'n9'"):
        TinyImageNet(path=root).open(0)
