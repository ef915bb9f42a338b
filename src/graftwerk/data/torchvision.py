"""torchvision's CIFAR and MNIST families, from their usual files; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, KMNIST, MNIST, FashionMNIST
from torchvision.datasets.utils import check_integrity

from graftwerk.data.source import Splits
from graftwerk.errors import DataError

DATASETS: dict[str, type[CIFAR10 | MNIST]] = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "mnist": MNIST,
    "fashion_mnist": FashionMNIST,
    "kmnist": KMNIST,
}


@dataclass(frozen=True)
class TorchvisionSource:
    """One split, which torchvision holds in memory."""

    dataset: CIFAR10 | MNIST
    title: str
    positions: range

    @property
    def targets(self) -> np.ndarray:
        return np.asarray(self.dataset.targets)[self.positions]

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return self.dataset[self.positions[index]]

    def name(self, index: int) -> str:
        return f"{self.title}[{self.positions[index]}]"


def open_torchvision(kind: str, path: Path, holdout: float = 0.0) -> Splits:
    """The data set `kind` below `path`, which torchvision calls its root.

    With `holdout` the last share of the training images is the validation split, else the test
    images are.

    Raises:
        DataError: names the files that are missing or are not what their checksums say.
    """
    path = path.expanduser()
    cls = DATASETS[kind]
    try:
        train, val = cls(path, train=True), cls(path, train=False)
    except Exception as error:  # RuntimeError as a rule, others from a file that is cut off
        raise DataError("\n".join(_problems(cls, path, error))) from None
    kept = round(len(train) * (1 - holdout))
    held_out = TorchvisionSource(train, f"{kind} train", range(kept, len(train)))
    test = TorchvisionSource(val, f"{kind} test", range(len(val)))
    return Splits(
        TorchvisionSource(train, f"{kind} train", range(kept)),
        held_out if holdout > 0 else test,
        tuple(train.classes),
    )


def _problems(cls: type[CIFAR10 | MNIST], path: Path, error: Exception) -> list[str]:
    below, checksums = _expected_files(cls)
    folder = path / below
    missing = [name for name in checksums if not (folder / name).exists()]
    if missing:
        return [
            f"{folder}: expected {', '.join(checksums)}; not there: {', '.join(missing)}. "
            f"Unpack {cls.__name__} there, or set data.path to the folder that holds {below}/"
        ]
    broken = [name for name, md5 in checksums.items() if not check_integrity(folder / name, md5)]
    if broken:
        return [
            f"{folder / name}: is damaged (wrong MD5 checksum); get it again" for name in broken
        ]
    reason = str(error) or type(error).__name__
    return [f"{folder}: {cls.__name__} can't be read ({reason}); get it again"]


def _expected_files(cls: type[CIFAR10 | MNIST]) -> tuple[Path, dict[str, str | None]]:
    """Where below the root the files lie, and their MD5 checksums where torchvision has them."""
    if issubclass(cls, CIFAR10):
        checksums = dict(cls.train_list + cls.test_list)
        return Path(cls.base_folder), {**checksums, cls.meta["filename"]: cls.meta["md5"]}
    archives = [name for name, _ in cls.resources]
    return Path(cls.__name__, "raw"), {name.removesuffix(".gz"): None for name in archives}
