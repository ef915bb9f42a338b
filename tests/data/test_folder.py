from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from graftwerk.data.folder import FolderSource, open_folder
from graftwerk.data.source import Source, Splits
from graftwerk.errors import DataError

ImageWriter = Callable[..., Path]


def names(source: Source) -> list[tuple[str, int]]:
    return [(source.name(index), source.read(index)[1]) for index in range(len(source))]


def problems(path: Path) -> list[str]:
    with pytest.raises(DataError) as error:
        open_folder(path, 0.25, 0)
    return str(error.value).splitlines()


@pytest.fixture
def two_splits(tmp_path: Path, write_image: ImageWriter) -> Path:
    for split, count in (("train", 3), ("val", 2)):
        for name in ("ant", "bee", "cat"):
            for number in range(count):
                write_image(tmp_path / split / name / f"{number}.jpg")
    return tmp_path


@pytest.mark.parametrize("val", ["val", "validation", "test"])
def test_splits_are_those_of_torchvision(two_splits: Path, val: str):
    (two_splits / "val").rename(two_splits / val)
    splits = open_folder(two_splits, 0.25, 0)
    assert splits.classes == ("ant", "bee", "cat")
    for source, name in ((splits.train, "train"), (splits.val, val)):
        assert names(source) == ImageFolder(two_splits / name).samples


def test_read_gives_the_bytes_of_the_file(two_splits: Path):
    source = open_folder(two_splits, 0.25, 0).train
    for index in range(len(source)):
        raw, target = source.read(index)
        assert raw == Path(source.name(index)).read_bytes()
        assert ("ant", "bee", "cat")[target] == Path(source.name(index)).parent.name


def test_val_wins_over_test(two_splits: Path, write_image: ImageWriter):
    write_image(two_splits / "test" / "ant" / "0.jpg")
    assert len(open_folder(two_splits, 0.25, 0).val) == 6


def test_val_may_lack_classes_and_keeps_the_numbers_of_training(two_splits: Path):
    for file in (two_splits / "val" / "ant").iterdir():
        file.unlink()
    (two_splits / "val" / "ant").rmdir()
    assert {target for _, target in names(open_folder(two_splits, 0.25, 0).val)} == {1, 2}


def test_one_folder_is_split_by_seed_within_each_class(tmp_path: Path, write_image: ImageWriter):
    for name, count in (("ant", 8), ("bee", 20), ("cat", 2)):
        for number in range(count):
            write_image(tmp_path / name / f"{number}.png")

    def held(seed: int) -> list[tuple[str, int]]:
        splits = open_folder(tmp_path, 0.25, seed)
        train, val = names(splits.train), names(splits.val)
        assert sorted(train + val) == sorted(ImageFolder(tmp_path).samples)
        assert [sum(target == number for _, target in val) for number in range(3)] == [2, 5, 1]
        return val

    assert held(0) == held(0) != held(1)


def test_classes_are_in_natural_order(tmp_path: Path, write_image: ImageWriter):
    for name in ("10", "2", "1", "b1", "B", "a10", "a9"):
        for number in range(2):
            write_image(tmp_path / name / f"{number}.png")
    assert open_folder(tmp_path, 0.5, 0).classes == ("1", "2", "10", "a9", "a10", "B", "b1")


def test_images_at_any_depth_and_through_links_but_nothing_hidden(
    tmp_path: Path, write_image: ImageWriter
):
    write_image(tmp_path / "data" / "ant" / "images" / "deep" / "1.JPEG")
    write_image(tmp_path / "data" / "ant" / "2.png")
    write_image(tmp_path / "data" / "ant" / "._2.png")
    write_image(tmp_path / "data" / "ant" / ".cache" / "3.png")
    write_image(tmp_path / "data" / ".trash" / "4.png")
    (tmp_path / "data" / "ant" / "notes.txt").write_text("no image")
    write_image(tmp_path / "elsewhere" / "5.webp")
    write_image(tmp_path / "elsewhere" / "6.tif")
    (tmp_path / "data" / "bee").symlink_to(tmp_path / "elsewhere")
    splits = open_folder(tmp_path / "data", 0.5, 0)
    assert splits.classes == ("ant", "bee")
    found = {Path(name).name for name, _ in names(splits.train) + names(splits.val)}
    assert found == {"1.JPEG", "2.png", "5.webp", "6.tif"}


def test_names_of_any_bytes(tmp_path: Path, write_image: ImageWriter):
    odd = os.fsdecode(b"odd \xff\xfe name.png")
    for folder in ("größe", "小さい"):
        write_image(tmp_path / folder / "plain.png")
        (tmp_path / folder / "plain.png").rename(tmp_path / folder / odd)
        write_image(tmp_path / folder / "plain.png")
    splits = open_folder(tmp_path, 0.5, 0)
    for source in (splits.train, splits.val):
        for index in range(len(source)):
            assert isinstance(source.read(index)[0], bytes)


def test_a_class_may_be_called_train(tmp_path: Path, write_image: ImageWriter):
    for name in ("bus", "car", "train"):
        for number in range(2):
            write_image(tmp_path / name / f"{number}.png")
    assert open_folder(tmp_path, 0.5, 0).classes == ("bus", "car", "train")


def test_the_listing_travels_as_arrays(two_splits: Path):
    source = open_folder(two_splits, 0.25, 0).train
    assert isinstance(source, FolderSource)
    assert source.files.dtype.kind == "S"
    assert names(pickle.loads(pickle.dumps(source))) == names(source)


def test_tilde_is_the_home_folder(two_splits: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(two_splits.parent))
    assert isinstance(open_folder(Path("~") / two_splits.name, 0.25, 0), Splits)


def test_missing_path(tmp_path: Path):
    assert problems(tmp_path / "nowhere") == [f"{tmp_path}/nowhere: no such folder; set data.path"]


def test_path_is_a_file(tmp_path: Path):
    (tmp_path / "images.tar").write_bytes(b"")
    (line,) = problems(tmp_path / "images.tar")
    assert line.startswith(f"{tmp_path}/images.tar: is a file; set data.path to a folder")


def test_empty_folder(tmp_path: Path):
    (line,) = problems(tmp_path)
    assert line == f"{tmp_path}: is empty; it needs images as {tmp_path}/<class>/<file>"


def test_images_without_class_folders(tmp_path: Path, write_image: ImageWriter):
    for number in range(3):
        write_image(tmp_path / f"{number}.jpg")
    (line,) = problems(tmp_path)
    assert line.startswith(f"{tmp_path}: 3 images lie directly in it; put each into a folder")


def test_images_of_the_splits_without_class_folders(tmp_path: Path, write_image: ImageWriter):
    for split in ("train", "val"):
        write_image(tmp_path / split / "0.jpg")
    train, val = problems(tmp_path)
    assert train.startswith(f"{tmp_path}/train: 1 images lie directly in it")
    assert val.startswith(f"{tmp_path}/val: 1 images lie directly in it")


def test_one_class(tmp_path: Path, write_image: ImageWriter):
    for number in range(3):
        write_image(tmp_path / "ant" / f"{number}.jpg")
    (line,) = problems(tmp_path)
    assert line.startswith(f"{tmp_path}: there is only one class ('ant')")


def test_a_class_of_one_image_cannot_be_held_out(tmp_path: Path, write_image: ImageWriter):
    for name, count in (("ant", 1), ("bee", 3)):
        for number in range(count):
            write_image(tmp_path / name / f"{number}.jpg")
    (line,) = problems(tmp_path)
    assert line == (f"{tmp_path}: only one image in class folder 'ant'; holding one out needs two")


def test_training_images_without_others(two_splits: Path):
    (two_splits / "val").rename(two_splits / "unlabelled")
    (line,) = problems(two_splits)
    assert line.startswith(f"{two_splits}: has train/ but none of val/, validation/, test/")
    assert f"data.path={two_splits}/train" in line
    assert len(open_folder(two_splits / "train", 0.25, 0).train) == 6


def test_validation_images_without_training(two_splits: Path):
    (two_splits / "train" / "ant").rename(two_splits / "val" / "dog")
    for name in ("bee", "cat"):
        (two_splits / "train" / name).rename(two_splits / "val" / f"more {name}")
    (two_splits / "train").rmdir()
    (line,) = problems(two_splits)
    assert line.startswith(f"{two_splits}: has val/ but no train/")


def test_every_problem_is_told_at_once(two_splits: Path, write_image: ImageWriter):
    (two_splits / "train" / "dog").mkdir()
    (two_splits / "train" / "dog" / "readme.txt").write_text("none yet")
    for number in range(7):
        write_image(two_splits / "val" / f"new{number}" / "0.jpg")
    (two_splits / "val" / "cow").mkdir()
    empty, empty_val, unknown = problems(two_splits)
    assert empty.startswith(f"{two_splits}/train: no images in class folder 'dog' (.jpg, ")
    assert empty_val.startswith(f"{two_splits}/val: no images in class folder 'cow' (.jpg, ")
    assert unknown.startswith(
        f"{two_splits}/val: train/ has no class 'cow', 'new0', 'new1', 'new2', 'new3' and 3 more;"
    )


def test_a_file_that_vanished_is_named(two_splits: Path):
    source = open_folder(two_splits, 0.25, 0).train
    Path(source.name(4)).unlink()
    with pytest.raises(DataError, match=r"bee/1\.jpg: can't be read \(No such file"):
        source.read(4)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_permission_is_named(two_splits: Path):
    (two_splits / "train" / "bee").chmod(0)
    (line,) = problems(two_splits)
    assert line == f"{two_splits}/train/bee: can't be read (Permission denied)"


@pytest.mark.parametrize("names", [("Train", "Val"), ("Training", "Testing")])
def test_splits_of_other_names_are_no_classes(
    tmp_path: Path, write_image: ImageWriter, names: tuple[str, str]
):
    for split in names:
        for number in range(4):
            write_image(tmp_path / split / "ant" / f"{number}.jpg")
    with pytest.raises(DataError, match=rf"'{names[1]}'.* are named like splits.* train and val"):
        open_folder(tmp_path, 0.5, 0)


def test_a_link_that_leads_back_is_named(tmp_path: Path, write_image: ImageWriter):
    for name in ("ant", "bee"):
        for number in range(2):
            write_image(tmp_path / name / f"{number}.jpg")
    (tmp_path / "ant" / "up").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"ant/up: a link to .* which holds it; remove the link"):
        open_folder(tmp_path, 0.5, 0)
