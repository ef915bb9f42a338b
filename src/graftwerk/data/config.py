"""Config of the data: where images lie, how they are augmented, how they are batched."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from graftwerk.config import Choice, Node
from graftwerk.errors import DataError

if TYPE_CHECKING:
    from graftwerk.data.source import Splits

Mode = Literal["rgb", "grey"]
Triple = tuple[float, ...]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class Data(Choice):
    """A set of images with a training and a validation split."""

    default_kind = "digits"

    mode: Mode = "rgb"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    workers: int | None = Field(default=None, ge=0)
    """Loader processes per rank; unset: up to 8, shared between the ranks of a machine."""
    on_error: Literal["fail", "skip"] = "fail"
    """What an unreadable image does: stop the run, or be named and replaced."""
    last: Literal["drop", "wrap"] = "drop"
    """An epoch's last incomplete batch: left out, or filled from the epoch's start."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """The share of each class's training images that is used, chosen by the run's seed."""
    stage: str | None = None
    """Copy the data to this folder of the node's own disk first; auto: SLURM_TMPDIR or TMPDIR."""

    @property
    def channels(self) -> int:
        return self._colours

    @property
    def _colours(self) -> int:
        return 3 if self.mode == "rgb" else 1

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Data:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self._colours:
                wanted = f"{self._colours} value{'s' if self._colours > 1 else ''}"
                raise ValueError(f"{name} needs {wanted} for mode={self.mode}, got {len(values)}")
        if min(self.std) <= 0:
            raise ValueError("std needs values greater than 0")
        return self

    def open(self, seed: int) -> Splits:
        """Find the images; raises `DataError` naming the folder or file that is wrong."""
        splits = self.located().staged().find(seed)
        if self.fraction == 1:
            return splits
        from graftwerk.data.source import fraction

        return replace(splits, train=fraction(splits.train, self.fraction, seed))

    @property
    def variable(self) -> str:
        """The environment variable that names the data of this kind where `path` is not set."""
        return f"{self.kind.upper()}_PYTORCH"

    def located(self) -> Data:
        """This data with the path that the environment names, where it has none of its own."""
        if getattr(self, "path", Path()) is not None:
            return self
        if self.variable not in os.environ:
            raise DataError(
                f"data.path: name the folder of {self.kind}, or set {self.variable} to it"
            )
        return self.model_copy(update={"path": Path(os.environ[self.variable])})

    def staged(self) -> Data:
        """This data on the node's own disk, where that is wanted and possible."""
        path: Path | None = getattr(self, "path", None)
        if self.stage is None or path is None:
            return self
        from graftwerk.data.staging import staged

        return self.model_copy(update={"path": staged(path, self.stage)})

    def find(self, seed: int) -> Splits:
        """All images of this kind of data."""
        raise NotImplementedError


class Digits(Data, kind="digits"):
    """scikit-learn's 1,797 real handwritten digits of 8x8 pixels; a fifth is held out."""

    mode: Mode = "grey"
    mean: Triple = (0.3053,)
    std: Triple = (0.3762,)
    workers: int | None = Field(default=0, ge=0)
    holdout: float = Field(default=0.2, gt=0, lt=1)

    def find(self, seed: int) -> Splits:
        from graftwerk.data.digits import open_digits

        del seed
        return open_digits(self.holdout)


class Folder(Data, kind="folder"):
    """`path/train/<class>/*` and `path/val/<class>/*` (or `test`), or one folder split by seed."""

    path: Path
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """The share of each class held out where `path` has no split of its own."""

    def find(self, seed: int) -> Splits:
        from graftwerk.data.folder import open_folder

        return open_folder(self.path, self.holdout, seed)


class Images(Data, kind="images"):
    """Every image below `path`, without labels; a split of its own is `train/` beside `val/`."""

    path: Path
    holdout: float = Field(default=0.02, gt=0, lt=1)
    """The share held out for evaluation where `path` has no split of its own."""

    def find(self, seed: int) -> Splits:
        from graftwerk.data.folder import open_images

        return open_images(self.path, self.holdout, seed)


class Archives(Data):
    """Images in archives at `path` (one, or a folder of them), read in place by an index.

    The index is written beside them at the first use; later openings take no time.
    """

    path: Path
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """The share of each class held out where the archives tell no split."""


class Tar(Archives, kind="tar"):
    """Tar archives, or tar archives of tar archives; an image's folder is its class."""

    def find(self, seed: int) -> Splits:
        from graftwerk.data.archives import open_tar

        return open_tar(self.path, self.holdout, seed)


class Zip(Archives, kind="zip"):
    """Zip archives; an image's folder is its class."""

    def find(self, seed: int) -> Splits:
        from graftwerk.data.archives import open_zip

        return open_zip(self.path, self.holdout, seed)


class Shards(Archives, kind="shards"):
    """WebDataset's shards, as ``train-{000000..000099}.tar`` or a folder of them."""

    def find(self, seed: int) -> Splits:
        from graftwerk.data.archives import open_shards

        return open_shards(self.path, self.holdout, seed)


class Hdf5(Archives, kind="hdf5"):
    """One HDF5 file: as `graftwerk data pack` writes it, or with `encoded_images`, `targets`."""

    splits: tuple[int, ...] | None = None
    """Lengths of the parts to train and to validate on, in a file without groups for them."""

    def find(self, seed: int) -> Splits:
        from graftwerk.data.hdf5 import open_hdf5

        return open_hdf5(self.path, self.splits, self.holdout, seed)


class TorchvisionData(Data):
    """One of torchvision's data sets in its usual files below `path`; never downloaded.

    Found by KIND_PYTORCH (``CIFAR10_PYTORCH``) without a path.
    """

    path: Path | None = None
    holdout: float = Field(default=0.0, ge=0, lt=1)
    """If more than 0, validation is this last share of the training images, and the test images
    stay unseen."""

    def find(self, seed: int) -> Splits:
        from graftwerk.data.torchvision import open_torchvision

        del seed
        assert self.path is not None
        return open_torchvision(self.kind, self.path, self.holdout)


CIFAR10_MEAN: Triple = (0.4914, 0.4822, 0.4465)
CIFAR10_STD: Triple = (0.247, 0.2435, 0.2616)


class Cifar10(TorchvisionData, kind="cifar10"):
    mean: Triple = CIFAR10_MEAN
    std: Triple = CIFAR10_STD


class Cifar100(TorchvisionData, kind="cifar100"):
    mean: Triple = (0.5071, 0.4865, 0.4409)
    std: Triple = (0.2673, 0.2564, 0.2762)


class Mnist(TorchvisionData, kind="mnist"):
    mode: Mode = "grey"
    mean: Triple = (0.1307,)
    std: Triple = (0.3081,)


class FashionMnist(TorchvisionData, kind="fashion_mnist"):
    mode: Mode = "grey"
    mean: Triple = (0.286,)
    std: Triple = (0.353,)


class Kmnist(TorchvisionData, kind="kmnist"):
    mode: Mode = "grey"
    mean: Triple = (0.1918,)
    std: Triple = (0.3483,)


class TinyImageNet(Data, kind="tiny_imagenet"):
    """200 classes of 64×64 pixels as they are published; found by TINY_IMAGENET without a path."""

    path: Path | None = None
    holdout: float = Field(default=0.0, ge=0, lt=1)
    """If more than 0, validation is this share of each class's training images, the same for every
    seed, and the published validation images stay unseen."""

    @property
    def variable(self) -> str:
        return "TINY_IMAGENET"

    def find(self, seed: int) -> Splits:
        from graftwerk.data.tiny_imagenet import open_tiny_imagenet

        del seed
        assert self.path is not None
        return open_tiny_imagenet(self.path, self.holdout)


class Table(Data, kind="table"):
    """Rows of numbers in a CSV or Parquet file; a column is a channel of one pixel.

    70 % of the rows are learnt from, 15 % validate, 15 % test, by a fixed seed. Columns are
    standardised by the rows learnt from; `augment`, `mode`, `mean` and `std` don't matter.
    """

    path: Path | None = None
    """A file, or a folder with one; unset: TABULAR_DATA_DIR names it."""
    features: int = Field(ge=1)
    """Columns besides the target."""
    target: str = "target"
    """The column of the class numbers."""
    test: bool = False
    """Score the test rows instead of the validation rows."""
    workers: int | None = Field(default=0, ge=0)

    @property
    def variable(self) -> str:
        return "TABULAR_DATA_DIR"

    @property
    def channels(self) -> int:
        return self.features

    def find(self, seed: int) -> Splits:
        from graftwerk.data.table import open_table

        del seed
        return open_table(self)


class Higgs(Table, kind="higgs"):
    """Higgs boson or background: OpenML's task 361069, 940,160 rows."""

    features: int = 24


Size = int | tuple[int, int]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "random"]


class Augment(Node):
    """Training transforms. Names and meanings are timm's where timm has the transform."""

    size: Size = 224
    """Side of the square that the network sees, or (rows, columns)."""
    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    """`pad` enlarges by `padding` pixels on each side and cuts a random window."""
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    decode: Literal["exact", "fast", "dali"] = "exact"
    """`fast`: JPEG files decoded for the random resized crop by libjpeg-turbo, not by Pillow;
    `dali`: on the device, by NVIDIA DALI."""
    padding: int = Field(default=4, ge=0)
    padding_mode: Literal["zero", "reflect"] = "zero"
    interpolation: Interpolation = "bicubic"
    hflip: float = Field(default=0.5, ge=0, le=1)
    vflip: float = Field(default=0.0, ge=0, le=1)
    color_jitter: float = Field(default=0.0, ge=0)
    policy: str | None = None
    """timm's policy string (`rand-m9-mstd0.5-inc1`, `original`, `augmix-m3-w3`) or `trivial`."""
    erase: float = Field(default=0.0, ge=0, le=1)
    erase_mode: Literal["const", "rand", "pixel"] = "pixel"
    erase_count: int = Field(default=1, ge=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    cutmix_minmax: tuple[float, float] | None = None
    mix_prob: float = Field(default=1.0, ge=0, le=1)
    mix_switch: float = Field(default=0.5, ge=0, le=1)
    mix_mode: Literal["batch", "pair", "elem"] = "batch"
    repeats: int = Field(default=1, ge=1)
    """Repeated augmentation: each image appears this often in a row, an epoch stays as long."""

    @property
    def height_width(self) -> tuple[int, int]:
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None


from graftwerk.data import presets as presets  # noqa: E402  # the kinds of the named data sets
