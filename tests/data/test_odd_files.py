"""What people's folders hold besides plain JPEG files of plain names."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graftwerk.cli import main
from graftwerk.config import load
from graftwerk.data.config import Data
from graftwerk.data.digits import open_digits
from graftwerk.data.pack import Recode, pack
from graftwerk.data.source import Splits
from trees import content, same, tree, write_files, write_shards


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_files(tree(rng), tmp_path / "folder")


def opened(kind: str, path: Path) -> Splits:
    return load(Data, {"kind": kind, "path": path}).open(0)


@pytest.mark.parametrize("format", ["GIF", "JPEG2000", "MPO", "WEBP", "TIFF"])
def test_no_image_is_lost_for_its_format(tmp_path: Path, folder: Path, format: str):
    """Readers of archives go by names; an image may be called otherwise than it is."""
    path = folder / "train" / "ant" / "00.jpg"
    Image.open(path).save(path, format=format)
    before = opened("folder", folder)
    pack(before, tmp_path / "to", "tar", Recode(), workers=0)
    assert same(opened("tar", tmp_path / "to"), before)


def test_a_damaged_image_is_left_out_though_images_keep_their_bytes(tmp_path: Path, folder: Path):
    path = folder / "train" / "ant" / "00.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    before = opened("folder", folder)
    report = pack(before, tmp_path / "to", "tar", Recode(on_error="skip"), workers=0)
    (problem,) = report.problems
    assert problem.startswith(f"{path}: is no readable image (")
    assert len(opened("tar", tmp_path / "to").train) == len(before.train) - 1


def test_what_is_no_file_is_packed_without_loss(tmp_path: Path):
    digits = open_digits(0.2)
    pack(digits, tmp_path / "to", "tar", Recode(), workers=0)
    packed = opened("tar", tmp_path / "to")
    in_order = np.argsort(digits.train.targets, kind="stable")  # archives hold class after class
    assert packed.train.targets.tolist() == digits.train.targets[in_order].tolist()
    for place, index in enumerate(in_order[:40].tolist()):
        raw, image = packed.train.read(place)[0], digits.train.read(index)[0]
        assert isinstance(raw, bytes)
        assert isinstance(image, Image.Image)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(raw))), np.asarray(image))


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
@pytest.mark.parametrize("format", ["tar", "hdf5"])
def test_names_that_are_no_text(
    tmp_path: Path, folder: Path, format: str, monkeypatch: pytest.MonkeyPatch
):
    path = Path(os.fsdecode(os.fsencode(folder / "train" / "ant") + b"/\xff.jpg"))
    path.with_name("00.jpg").rename(path)
    assert main(["data", "pack", str(folder), str(tmp_path / "to"), "--format", format]) == 0
    assert same(opened(format, tmp_path / "to"), opened("folder", folder))
    path.write_bytes(b"")
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "utf-8", write_through=True))
    assert main(["data", "verify", str(folder), "--workers", "1"]) == 2
    assert rb"\udcff.jpg: is no readable image (it is empty)" in shown.getvalue()


def test_a_staged_folder_has_what_links_lead_to(tmp_path: Path, folder: Path):
    (folder / "train" / "ant").rename(tmp_path / "elsewhere")
    (folder / "train" / "ant").symlink_to(tmp_path / "elsewhere")
    (folder / "val" / "ant" / "00.jpg").rename(tmp_path / "one.jpg")
    (folder / "val" / "ant" / "00.jpg").symlink_to(tmp_path / "one.jpg")
    data = load(Data, {"kind": "folder", "path": folder, "stage": str(tmp_path / "disk")})
    before, after = opened("folder", folder), data.open(0)
    assert str(tmp_path / "disk") in after.train.name(0)
    assert content(after.train) == content(before.train)
    assert content(after.val) == content(before.val)


def test_a_link_to_nothing_is_not_staged(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    """A copy without it would be another data set."""
    link = folder / "train" / "ant" / "99.jpg"
    link.symlink_to(tmp_path / "absent")
    assert main(["data", "stage", str(folder), "--to", str(tmp_path / "disk")]) == 2
    assert f"{link}: No such file or directory" in capsys.readouterr().err


def test_shards_by_their_braces_are_staged(tmp_path: Path, folder: Path):
    shards = write_shards(opened("folder", folder), tmp_path / "shards")
    keys = {"kind": "shards", "path": shards / "train-{000000..000001}.tar", "holdout": 0.5}
    before = load(Data, keys).open(0)
    after = load(Data, keys | {"stage": str(tmp_path / "disk")}).open(0)
    assert str(tmp_path / "disk") in after.train.name(0)
    assert same(after, before)


def test_a_place_that_can_not_be_written_is_named(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    assert main(["data", "pack", str(folder), str(tmp_path / "file" / "to")]) == 2
    assert f"{tmp_path / 'file' / 'to'}: Not a directory" in capsys.readouterr().err


def test_an_index_that_has_no_place_is_told(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    pack(opened("folder", folder), tmp_path / "to", "tar", Recode(), workers=0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, m: Path(p) != tmp_path / "to" and real(p, m))
    assert main(["data", "inspect", str(tmp_path / "to")]) == 2
    assert "set XDG_CACHE_HOME to a folder" in capsys.readouterr().err


def test_a_missing_file_of_the_manifest_is_told_with_what_follows_from_it(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    pack(opened("folder", folder), tmp_path / "to", "tar", Recode(), workers=0)
    (tmp_path / "to" / "train.tar").unlink()
    assert main(["data", "verify", str(tmp_path / "to")]) == 2
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'to' / 'train.tar'}: can't be read (No such file or directory)" in shown
    assert "has images of val and none to train on" in shown
    assert "0 images and 2 files of the manifest: 2 problems" in shown


@pytest.mark.parametrize(
    "words", ["--workers -1", "--max-side 0", "--quality 101 --encode jpeg", "--workers two"]
)
def test_numbers_out_of_range_are_refused(
    tmp_path: Path, folder: Path, words: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        main(["data", "pack", str(folder), str(tmp_path / "to"), *words.split()])
    assert words.split()[0] in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("words", [["pack", "FOLDER", "TO"], ["stage", "FOLDER", "--to", "TO"]])
def test_a_copy_within_the_data_set_is_refused(
    folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]
):
    target = folder / "packed"
    places = {"FOLDER": str(folder), "TO": str(target)}
    assert main(["data", *(places.get(word, word) for word in words)]) == 2
    assert f"{target}: lies within {folder}; name a folder elsewhere" in capsys.readouterr().err
    assert not target.exists()


def test_a_compressed_archive_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    assert main(["data", "inspect", str(tmp_path / "a.tar.gz")]) == 2
    assert "gunzip" in capsys.readouterr().err
