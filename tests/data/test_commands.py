from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graftwerk.cli import main
from graftwerk.config import load
from graftwerk.data import manifest
from graftwerk.data.config import Data
from graftwerk.data.pack import Recode, pack, recoded
from graftwerk.data.source import Splits
from graftwerk.errors import DataError
from trees import content, same, tree, write_files


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_files(tree(rng, per_class=30), tmp_path / "folder")


def opened(kind: str, path: Path) -> Splits:
    return load(Data, {"kind": kind, "path": path}).open(0)


@pytest.mark.parametrize("format", ["tar", "hdf5"])
def test_pack_read_gives_the_same_bytes_and_labels(tmp_path: Path, folder: Path, format: str):
    words = ["data", "pack", str(folder), str(tmp_path / "to"), "--format", format]
    assert main([*words, "--workers", "1"]) == 0
    assert same(opened(format, tmp_path / "to"), opened("folder", folder))
    assert not list((tmp_path / "to").glob("*partial*"))
    assert main(["data", "verify", str(tmp_path / "to"), "--workers", "1"]) == 0
    assert main([*words, "--workers", "0"]) == 2


def test_inspect_tells_what_is_there(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["data", "inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "train  90 images, 30 to 30 a class" in shown
    assert "3 classes: ant, bird9, bird10" in shown
    assert main(["data", "inspect", str(tmp_path / "absent")]) == 2


def test_stage_prints_the_copy(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "stage", str(folder), "--to", str(tmp_path / "disk")]) == 0
    copy = Path(capsys.readouterr().out.strip())
    assert same(opened("folder", copy), opened("folder", folder))


def test_verify_names_damage_by_file_and_offset(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    pack(opened("folder", folder), tmp_path / "to", "tar", Recode(), workers=0)
    path = tmp_path / "to" / "train.tar"
    damaged = bytearray(path.read_bytes())
    start = opened("tar", path.parent).train.name(7).partition("at byte ")[2]
    offset = int(start.rstrip(")").replace(",", ""))
    damaged[offset : offset + 100] = bytes(100)
    path.write_bytes(damaged)
    assert main(["data", "verify", str(path.parent), "--workers", "1"]) == 2
    shown = capsys.readouterr().out
    assert f"{path}: damaged within 67,108,864 bytes from 0 on" in shown
    assert f"(at byte {offset:,}): is no readable image" in shown
    assert "96 images and 2 files of the manifest: 2 problems" in shown


def test_a_pack_that_was_interrupted_goes_on(tmp_path: Path, folder: Path):
    splits = opened("folder", folder)

    def stop(count: int) -> None:
        done.append(count)
        if sum(done) >= 64:
            raise KeyboardInterrupt

    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        pack(splits, tmp_path / "to", "tar", Recode(), workers=0, on_images=stop)
    with (tmp_path / "to" / "train.tar.partial").open("ab") as file:
        file.write(b"half of an image")
    with (tmp_path / "to" / "train.journal.partial").open("a") as file:
        file.write("[128, 99")
    assert main(["data", "inspect", str(tmp_path / "to")]) == 2  # not finished
    seen: list[int] = []
    report = pack(splits, tmp_path / "to", "tar", Recode(), workers=0, on_images=seen.append)
    assert seen[0] == 64
    assert report.images == 96
    assert same(opened("tar", tmp_path / "to"), splits)
    pack(splits, tmp_path / "whole", "tar", Recode(), workers=0)
    assert manifest.read(tmp_path / "to") == manifest.read(tmp_path / "whole")


def test_damaged_images_stop_a_pack_or_are_left_out_by_name(tmp_path: Path, folder: Path):
    broken = folder / "train/ant/04.jpg"
    broken.write_bytes(b"no image")
    splits = opened("folder", folder)
    shrink = Recode(max_side=8)
    with pytest.raises(DataError, match=r"ant/04\.jpg: .*\nmend or remove it"):
        pack(splits, tmp_path / "to", "tar", shrink, workers=0)
    skip = Recode(max_side=8, on_error="skip")
    report = pack(splits, tmp_path / "to", "tar", skip, workers=0)
    assert report.images == 95
    assert [problem.partition(": ")[0] for problem in report.problems] == [str(broken)]
    assert len(opened("tar", tmp_path / "to").train) == 89


def test_recoding_shrinks_and_stores_as_asked(folder: Path):
    raw = (folder / "train/ant/00.jpg").read_bytes()
    assert recoded(raw, Recode()) == (raw, ".jpg")
    assert recoded(raw, Recode(max_side=24)) == (raw, ".jpg")
    small, extension = recoded(raw, Recode(max_side=12))
    assert extension == ".jpg"
    pixels, extension = recoded(raw, Recode(encode="raw"))
    assert extension == ".ppm"
    for stored, size in ((small, (12, 10)), (pixels, (24, 20))):
        with Image.open(io.BytesIO(stored)) as image:
            assert image.size == size
            if size == (24, 20):
                original = Image.open(folder / "train/ant/00.jpg")
                np.testing.assert_array_equal(np.asarray(image), np.asarray(original))


def test_raw_pixels_train_like_the_files(tmp_path: Path, folder: Path):
    splits = opened("folder", folder)
    pack(splits, tmp_path / "to", "tar", Recode(encode="raw"), workers=0)
    packed = opened("tar", tmp_path / "to")
    assert packed.train.targets.tolist() == splits.train.targets.tolist()
    assert all(raw.startswith(b"P6") for raw, _ in content(packed.train))  # pyright: ignore
    facts = json.loads((tmp_path / "to" / "manifest.json").read_text())
    assert [entry["name"] for entry in facts["files"]] == ["train.tar", "val.tar"]


def test_bench_tells_the_speed_with_and_without_processes(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["data", "bench", str(folder), "--images", "64", "--size", "16", "--workers", "0"]
    assert main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in shown] == ["0 workers", "1 workers"]
    assert main([*words[:3], "--images", "32"]) == 2
