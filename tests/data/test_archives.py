from __future__ import annotations

import json
import os
import pickle
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from graftwerk.config import load
from graftwerk.data import index
from graftwerk.data.config import Data
from graftwerk.data.source import Splits
from graftwerk.errors import DataError
from trees import (
    Files,
    content,
    jpeg,
    same,
    tar_bytes,
    tree,
    write_files,
    write_shards,
    write_tar,
    write_zip,
)


def opened(kind: str, path: Path, **keys: object) -> Splits:
    return load(Data, {"kind": kind, "path": path, **keys}).open(0)


@pytest.fixture
def files(rng: np.random.Generator) -> Files:
    return tree(rng)


@pytest.fixture
def folder(tmp_path: Path, files: Files) -> Splits:
    return opened("folder", write_files(files, tmp_path / "folder"))


def shuffled(files: Files, rng: np.random.Generator) -> Files:
    names = list(files)
    rng.shuffle(names)
    return {name: files[name] for name in names}


def of_split(files: Files, split: str) -> Files:
    prefix = f"{split}/"
    return {n.removeprefix(prefix): data for n, data in files.items() if n.startswith(prefix)}


def test_one_tar_with_both_splits(
    tmp_path: Path, files: Files, folder: Splits, rng: np.random.Generator
):
    path = write_tar(
        {f"./birds/{n}": d for n, d in shuffled(files, rng).items()}, tmp_path / "a.tar"
    )
    assert same(opened("tar", path), folder)
    assert folder.classes == ("ant", "bird9", "bird10")


def test_a_tar_for_each_split(tmp_path: Path, files: Files, folder: Splits):
    for split, name in (("train", "ILSVRC2012_img_train.tar"), ("val", "some-val.tar")):
        write_tar(of_split(files, split), tmp_path / "tars" / name)
    assert same(opened("tar", tmp_path / "tars"), folder)


def test_tars_in_a_tar(tmp_path: Path, files: Files, folder: Splits):
    for split in ("train", "val"):
        inner = {
            f"{name}.tar": tar_bytes(
                (path.rpartition("/")[2], data)
                for path, data in of_split(files, split).items()
                if path.startswith(f"{name}/")
            )
            for name in ("bird10", "ant", "bird9")
        }
        write_tar(inner, tmp_path / "tars" / f"{split}.tar")
    assert same(opened("tar", tmp_path / "tars"), folder)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip(tmp_path: Path, files: Files, folder: Splits, rng: np.random.Generator, method: int):
    path = write_zip(shuffled(files, rng), tmp_path / "a.zip", method)
    assert same(opened("zip", path), folder)


def test_shards(tmp_path: Path, folder: Splits):
    path = write_shards(folder, tmp_path / "shards")
    assert same(opened("shards", path), folder)
    some = opened("shards", path / "train-{000000..000001}.tar", holdout=0.5)
    assert len(some.train) + len(some.val) == 8


def test_shards_that_timm_describes(tmp_path: Path, folder: Splits):
    path = write_shards(folder, tmp_path / "shards")
    splits: dict[str, list[str]] = {"train": [], "validation": []}
    for old in sorted(path.glob("*.tar")):
        new = f"{len(splits['train']) + len(splits['validation']):05}.tar"
        splits["train" if old.name.startswith("train") else "validation"].append(new)
        old.rename(path / new)
    listed = {name: {"name": name, "filenames": shards} for name, shards in splits.items()}
    (path / "_info.json").write_text(json.dumps({"splits": listed}))
    assert same(opened("shards", path), folder)


def test_without_a_split_a_share_of_each_class_is_held_out(tmp_path: Path, files: Files):
    splits = opened("tar", write_tar(of_split(files, "train"), tmp_path / "a.tar"), holdout=0.4)
    assert np.bincount(splits.train.targets).tolist() == [3, 3, 3]
    assert np.bincount(splits.val.targets).tolist() == [2, 2, 2]
    both = content(splits.train) + content(splits.val)
    assert sorted(raw for raw, _ in both) == sorted(of_split(files, "train").values())  # pyright: ignore[reportArgumentType]


def test_names_tell_archive_path_and_offset(tmp_path: Path, files: Files):
    path = write_tar(files, tmp_path / "a.tar")
    source = opened("tar", path).train
    for number in range(len(source)):
        name, _, offset = source.name(number).partition(" (at byte ")
        raw, _ = source.read(number)
        assert files[name.removeprefix(f"{path}: ")] == raw
        start = int(offset.rstrip(")").replace(",", ""))
        assert path.read_bytes()[start:].startswith(raw)  # pyright: ignore[reportArgumentType]


def test_the_index_is_used_again_until_the_archive_changes(tmp_path: Path, files: Files):
    path = write_tar(files, tmp_path / "a.tar")
    opened("tar", path)
    home = tmp_path / "a.tar.index"
    first = home.stat().st_mtime_ns
    opened("tar", path)
    assert home.stat().st_mtime_ns == first
    fewer = {name: data for name, data in files.items() if not name.endswith("03.jpg")}
    write_tar(fewer, path)
    assert len(opened("tar", path).train) == 12


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:5], lambda _: b""])
def test_a_damaged_index_is_made_anew(tmp_path: Path, files: Files, folder: Splits, damage):  # pyright: ignore
    path = write_tar(files, tmp_path / "a.tar")
    opened("tar", path)
    home = tmp_path / "a.tar.index"
    home.write_bytes(damage(home.read_bytes()))  # pyright: ignore
    index._mapped.cache_clear()  # pyright: ignore[reportPrivateUsage]
    assert same(opened("tar", path), folder)


def test_an_unwritable_folder_keeps_its_index_in_the_cache(
    tmp_path: Path, files: Files, folder: Splits, monkeypatch: pytest.MonkeyPatch
):
    path = write_tar(files, tmp_path / "tars" / "a.tar")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, m: Path(p) != path.parent and real(p, m))
    assert same(opened("tar", path), folder)
    assert list(path.parent.iterdir()) == [path]
    assert len(list((tmp_path / "cache" / "graftwerk").glob("*.index"))) == 1


def _open_and_read(path: Path) -> tuple[int, list[tuple[object, int]]]:
    splits = opened("tar", path)
    return os.getpid(), content(splits.train)


def test_processes_that_open_at_once_build_one_index(tmp_path: Path, files: Files, folder: Splits):
    path = write_tar(files, tmp_path / "a.tar")
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        found = list(pool.map(_open_and_read, [path] * 6))
    assert all(read == content(folder.train) for _, read in found)
    assert not list(tmp_path.glob("*.partial"))


def test_a_source_travels_as_its_path(tmp_path: Path, files: Files):
    source = opened("tar", write_tar(files, tmp_path / "a.tar")).train
    packed = pickle.dumps(source)
    assert len(packed) < 1000
    assert content(pickle.loads(packed)) == content(source)


# ---------------------------------------------------------------- bad input


def test_an_archive_that_changes_under_a_run_is_not_read(tmp_path: Path, files: Files):
    path = write_tar(files, tmp_path / "a.tar")
    source = opened("tar", path).train
    write_tar(dict(reversed(files.items())), path)
    with pytest.raises(DataError, match=r"a\.tar: has changed since this run began"):
        source.read(0)


def test_a_shard_that_vanishes_is_named(tmp_path: Path, folder: Splits):
    path = write_shards(folder, tmp_path / "shards")
    source = opened("shards", path).train
    (path / "train-000001.tar").unlink()
    source.read(0)
    with pytest.raises(DataError, match=r"train-000001\.tar: 000004\.jpg .* can't be read"):
        source.read(4)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"cat.jpg": b"1", "dog.jpg": b"2"}, "images that lie in no class folder"),
        ({"train/cat.jpg": b"1", "val/dog.jpg": b"2"}, "images that lie in no class folder"),
        ({"a/1.jpg": b"1", "a/2.jpg": b"2"}, "there is only one class ('a')"),
        ({"a/1.txt": b"1"}, "no images (.jpg"),
        ({"val/a/1.jpg": b"1", "val/b/2.jpg": b"2"}, "has images of val and none to train on"),
        (
            {"train/a/1.jpg": b"1", "train/b/2.jpg": b"2", "val/c/3.jpg": b"3"},
            "the training images have no class 'c', but those of val do",
        ),
        (
            {"x/a/1.jpg": b"1", "y/a/2.jpg": b"2", "y/b/2.jpg": b"2"},
            "the folders 'x/a' and 'y/a' would be one class 'a'",
        ),
        (
            {"train/a/1.jpg": b"1", "train/b/2.jpg": b"2", "c/3.jpg": b"3"},
            "c/3.jpg (at byte 2,560): neither part of train",
        ),
    ],
)
def test_an_archive_that_is_no_data_set_is_refused(tmp_path: Path, files: Files, said: str):
    with pytest.raises(DataError) as error:
        opened("tar", write_tar(files, tmp_path / "some.tar"))
    assert f"{tmp_path / 'some.tar'}" in str(error.value)
    assert said in str(error.value)
    assert not list(tmp_path.glob("*.index"))


def test_the_same_path_twice_is_refused(tmp_path: Path, rng: np.random.Generator):
    twice = [("a/1.jpg", jpeg(rng)), ("b/1.jpg", jpeg(rng)), ("a/1.jpg", jpeg(rng))]
    (tmp_path / "some.tar").write_bytes(tar_bytes(twice))
    with pytest.raises(DataError, match=r"a/1\.jpg is there twice: .* \(at byte 512\) and "):
        opened("tar", tmp_path / "some.tar")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("0.jpg", b"x"), ("1.jpg", b"x"), ("1.cls", b"1")], "0 (at byte 512): no label"),
        ([("0.cls", b"1")], "0 (at byte 512): no image of this key"),
        ([("0.jpg", b"x"), ("0.cls", b"cat")], "0 (at byte 1,536): b'cat' is no class's number"),
        ([("0.jpg", b"x"), ("0.cls", b"-1")], "0 (at byte 1,536): b'-1' is no class's number"),
        (
            [(f"{n}.{e}", b"1") for n in (0, 1, 0) for e in ("jpg", "cls")],
            "0 (at byte 4,608): the key is there twice",
        ),
        ([("0.jpg", b"x"), ("0.png", b"x"), ("0.cls", b"1")], "a second image of this key"),
        ([("0.jpg", b"x"), ("0.cls", b"0")], "all labels are 0"),
    ],
)
def test_bad_shards_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], said: str):
    (tmp_path / "train.tar").write_bytes(tar_bytes(members))
    with pytest.raises(DataError) as error:
        opened("shards", tmp_path)
    assert said in str(error.value)


def test_a_label_that_training_does_not_know_is_refused(tmp_path: Path):
    for split, label in (("train", 1), ("val", 2)):
        members = {"0.jpg": b"x", "0.cls": str(label).encode()}
        write_tar(members, tmp_path / f"{split}.tar")
    with pytest.raises(DataError, match=r"val\.tar: 0\.jpg \(at byte 512\): label 2, and "):
        opened("shards", tmp_path)


def test_bad_zips_are_refused(tmp_path: Path, files: Files):
    path = write_zip(files, tmp_path / "a.zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.zip: is no intact zip archive"):
        opened("zip", path)
    write_zip({"a/../../x.jpg": b"x"}, path)
    with pytest.raises(DataError, match="lies outside of the archive"):
        opened("zip", path)


def test_a_deflated_image_that_is_damaged_is_named(tmp_path: Path, files: Files):
    path = write_zip(files, tmp_path / "a.zip", zipfile.ZIP_DEFLATED)
    facts = path.stat()
    source = opened("zip", path).train
    damaged = bytearray(path.read_bytes())
    start = int(source.name(0).partition("at byte ")[2].rstrip(")").replace(",", ""))
    damaged[start : start + 40] = bytes(40)
    path.write_bytes(damaged)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(DataError, match=r"ant/00\.jpg .*: is damaged"):
        source.read(0)


@pytest.mark.parametrize("kind", ["tar", "zip", "shards"])
def test_a_path_without_archives_is_named(tmp_path: Path, kind: str):
    for path in (tmp_path, tmp_path / "absent.tar", tmp_path / "a-{00..02}.tar"):
        with pytest.raises(DataError, match=r"set data\.path|3 of 3 are missing: a-00\.tar"):
            opened(kind, path)
