from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.io import savemat

from graftwerk.config import load
from graftwerk.data.config import Data
from graftwerk.data.presets import ImageNet
from graftwerk.data.source import Splits
from graftwerk.errors import ConfigError, DataError
from trees import content, jpeg, same, tree, write_files, write_tar


def opened(kind: str, path: Path | None = None, **keys: object) -> Splits:
    place = {} if path is None else {"path": path}
    return load(Data, {"kind": kind, **place, **keys}).open(0)


def test_a_preset_takes_any_format_and_counts_the_classes(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    files = tree(rng)
    folder, tar = write_files(files, tmp_path / "a"), write_tar(files, tmp_path / "a.tar")
    for path in (folder, tar):
        with pytest.raises(DataError, match=r"a(\.tar)?: 3 classes, and imagenet has 1,000; set"):
            opened("imagenet", path)
    monkeypatch.setattr(ImageNet, "num_classes", 3)
    assert same(opened("imagenet", folder), opened("imagenet", tar))
    assert Data.kinds.keys() >= {"imagenet21k_p", "inaturalist", "cifar10", "tiny_imagenet"}


def test_the_environment_names_a_preset_that_can_be_staged(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("IMAGENET_PYTORCH", raising=False)
    monkeypatch.setattr(ImageNet, "num_classes", 3)
    with pytest.raises(DataError, match="folder of imagenet, or set IMAGENET_PYTORCH to it"):
        opened("imagenet")
    folder = write_files(tree(rng), tmp_path / "a")
    monkeypatch.setenv("IMAGENET_PYTORCH", str(folder))
    assert same(opened("imagenet"), opened("imagenet", folder))
    staged = opened("imagenet", stage=str(tmp_path / "disk"))
    assert str(tmp_path / "disk") in staged.train.name(0)


def test_food101(tmp_path: Path, rng: np.random.Generator):
    lists = {"train": ["pho/2", "pho/1", "ramen/7"], "test": ["ramen/3"]}
    root = tmp_path / "food-101"
    write_files(
        {f"images/{name}.jpg": jpeg(rng) for names in lists.values() for name in names}
        | {f"meta/{split}.txt": "\n".join(names).encode() for split, names in lists.items()},
        root,
    )
    splits = opened("food101", tmp_path)
    assert same(splits, opened("food101", root))
    assert splits.classes == ("pho", "ramen")
    assert splits.train.targets.tolist() == [0, 0, 1]
    assert splits.val.read(0) == ((root / "images/ramen/3.jpg").read_bytes(), 1)
    (root / "images/pho/1.jpg").unlink()
    with pytest.raises(DataError, match=r"images/pho/1\.jpg: is listed and missing \(1 such\)"):
        opened("food101", tmp_path)


def test_dtd(tmp_path: Path, rng: np.random.Generator):
    names = [f"{name}/{name}_{i}.jpg" for name in ("banded", "woven") for i in range(3)]
    parts = {"train3": names[::3], "val3": names[1::3], "test3": names[2::3]}
    write_files(
        {f"images/{name}": jpeg(rng) for name in names}
        | {f"labels/{part}.txt": "\n".join(found).encode() for part, found in parts.items()},
        tmp_path / "dtd",
    )
    splits = opened("dtd", tmp_path, partition=3)
    assert [splits.val.name(i).rpartition("/")[2] for i in (0, 1)] == [
        "banded_1.jpg",
        "woven_1.jpg",
    ]
    test = opened("dtd", tmp_path, partition=3, test=True)
    assert test.val.name(0).endswith("banded_2.jpg")
    with pytest.raises(DataError, match=r"labels/train1\.txt: can't be read"):
        opened("dtd", tmp_path)


def test_eurosat(tmp_path: Path, rng: np.random.Generator):
    names = [f"{name}/{name}_{i}.jpg" for name in ("AnnualCrop", "River") for i in range(5)]
    write_files({name: jpeg(rng) for name in names}, tmp_path / "eurosat" / "2750")
    splits = opened("eurosat", tmp_path)
    assert (len(splits.train), len(splits.val)) == (8, 2)
    assert splits.classes == ("AnnualCrop", "River")
    with pytest.raises(DataError, match="none of eurosat/2750/AnnualCrop, "):
        opened("eurosat", tmp_path / "eurosat" / "2750" / "River")


def test_svhn(tmp_path: Path, rng: np.random.Generator):
    images = {n: rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8) for n in (12, 11)}
    for split, n in (("train", 12), ("test", 11)):
        digits = (np.arange(n) % 10 + 1)[:, None].astype(np.uint8)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images[n], "y": digits})
    splits = opened("svhn", tmp_path)
    assert splits.train.targets.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    image, digit = splits.val.read(9)
    np.testing.assert_array_equal(np.asarray(image), images[11][..., 9])
    assert digit == 0
    broken = tmp_path / "test_32x32.mat"
    broken.write_bytes(broken.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"test_32x32\.mat: can't be read"):
        opened("svhn", tmp_path)
    broken.unlink()
    with pytest.raises(DataError, match=r"test_32x32\.mat: no such file"):
        opened("svhn", tmp_path)


def saved(folder: Path, raws: list[bytes], labels: list[int], **state: object) -> None:
    """As `datasets.Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image_type), ("label", pa.int64())])
    for number in range(2):
        part = slice(number * len(raws) // 2, (number + 1) * len(raws) // 2)
        rows = [{"bytes": raw, "path": None} for raw in raws[part]]
        table = pa.table({"image": rows, "label": labels[part]}, schema=schema)
        file = str(folder / f"data-0000{number}-of-00002.arrow")
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(table)
    files = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    facts = {"_data_files": files, "_indices_data_files": None, **state}
    (folder / "state.json").write_text(json.dumps(facts))
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["ant", "bee"], "_type": "ClassLabel"},
    }
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def test_hugging_face_on_disk(tmp_path: Path, rng: np.random.Generator):
    raws = [jpeg(rng) for _ in range(8)]
    saved(tmp_path / "train", raws[:6], [0, 1, 0, 1, 1, 0])
    saved(tmp_path / "validation", raws[6:], [1, 0])
    splits = opened("huggingface", tmp_path)
    assert splits.classes == ("ant", "bee")
    assert content(splits.train) == list(zip(raws[:6], [0, 1, 0, 1, 1, 0], strict=True))
    assert content(splits.val) == list(zip(raws[6:], [1, 0], strict=True))
    alone = opened("huggingface", tmp_path / "train", holdout=0.4)
    assert (len(alone.train), len(alone.val)) == (4, 2)
    with pytest.raises(DataError, match=r"no column img; set data\.image"):
        opened("huggingface", tmp_path, image="img")
    saved(tmp_path / "wrong", raws, [0, 1, 2, 0, 0, 0, 0, 0])
    with pytest.raises(DataError, match=r"wrong\[2\]: label 2, of 2 classes"):
        opened("huggingface", tmp_path / "wrong")
    saved(tmp_path / "chosen", raws, [0] * 8, _indices_data_files=[{"filename": "i.arrow"}])
    with pytest.raises(DataError, match="flatten_indices"):
        opened("huggingface", tmp_path / "chosen")


def test_merged_data_share_the_classes_of_one_name(tmp_path: Path, rng: np.random.Generator):
    one, other = tree(rng), tree(rng)
    renamed = {name.replace("/ant/", "/cow/"): raw for name, raw in other.items()}
    folder, tar = write_files(one, tmp_path / "a"), write_tar(renamed, tmp_path / "b.tar")
    parts = [{"kind": "folder", "path": str(folder)}, {"kind": "tar", "path": str(tar)}]
    splits = opened("merged", parts=parts)
    assert splits.classes == ("ant", "bird9", "bird10", "cow")
    alone = [opened(str(part["kind"]), Path(part["path"])) for part in parts]
    for source, others in (
        (splits.train, [found.train for found in alone]),
        (splits.val, [found.val for found in alone]),
    ):
        expected = [
            (raw, splits.classes.index(alone[n].classes[target]))
            for n, part in enumerate(others)
            for raw, target in content(part)
        ]
        assert content(source) == expected
    assert splits.train.name(15).startswith(str(tar))
    staged = opened("merged", parts=parts, stage=str(tmp_path / "disk"))
    assert same(staged, splits)
    assert str(tmp_path / "disk") in staged.train.name(0)
    with pytest.raises(ConfigError, match="parts"):
        opened("merged", parts=[])


def test_labels_and_none_are_not_merged(tmp_path: Path, rng: np.random.Generator):
    folder = write_files(tree(rng), tmp_path / "a")
    parts = [{"kind": kind, "path": str(folder)} for kind in ("folder", "images")]
    with pytest.raises(DataError, match=r"has no class, and other parts of data\.parts have"):
        opened("merged", parts=parts)
