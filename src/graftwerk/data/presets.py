"""Config of named data sets: what is known of them beforehand, and in which layouts they come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from graftwerk.data.config import Data, Triple

if TYPE_CHECKING:
    from graftwerk.data.source import Splits


class Preset(Data):
    """A published data set in any format that `graftwerk data pack` reads, told by what lies there.

    Its number of classes is checked. Found by KIND_PYTORCH (``IMAGENET_PYTORCH``) without a path.
    """

    num_classes: ClassVar[int]
    path: Path | None = None
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """The share of each class held out where no split to validate on is there."""

    def find(self, seed: int) -> Splits:
        from graftwerk.data.named import open_preset

        assert self.path is not None
        return open_preset(self.kind, self.path, self.num_classes, self.holdout, seed)


class ImageNet(Preset, kind="imagenet"):
    """ImageNet-1K (ILSVRC 2012)."""

    num_classes = 1000


class ImageNet21kP(Preset, kind="imagenet21k_p"):
    """ImageNet-21K-P, the processed winter 2021 release."""

    num_classes = 10_450


class INaturalist(Preset, kind="inaturalist"):
    """iNaturalist 2021, `train` or `train_mini` beside `val`."""

    num_classes = 10_000


class Food101(Data, kind="food101"):
    """As published: ``food-101/images`` and ``food-101/meta``; its test images validate."""

    path: Path

    def find(self, seed: int) -> Splits:
        from graftwerk.data.named import open_food101

        del seed
        return open_food101(self.path)


class Dtd(Data, kind="dtd"):
    """Describable Textures as published: ``dtd/images`` and ``dtd/labels``."""

    path: Path
    partition: int = Field(default=1, ge=1, le=10)
    """Which of the ten published splits."""
    test: bool = False
    """Score the test images instead of the validation images."""

    def find(self, seed: int) -> Splits:
        from graftwerk.data.named import open_dtd

        del seed
        return open_dtd(self.path, self.partition, "test" if self.test else "val")


class EuroSat(Data, kind="eurosat"):
    """As published: ten folders of RGB images in ``2750``; a share of each is held out."""

    mean: Triple = (0.3444, 0.3803, 0.4078)
    std: Triple = (0.2034, 0.1366, 0.1148)
    path: Path
    holdout: float = Field(default=0.2, gt=0, lt=1)

    def find(self, seed: int) -> Splits:
        from graftwerk.data.named import open_eurosat

        return open_eurosat(self.path, self.holdout, seed)


class Svhn(Data, kind="svhn"):
    """Street View House Numbers: ``train_32x32.mat``; the images of ``test_32x32.mat`` validate."""

    mean: Triple = (0.4377, 0.4438, 0.4728)
    std: Triple = (0.198, 0.201, 0.197)
    path: Path

    def find(self, seed: int) -> Splits:
        from graftwerk.data.named import open_svhn

        del seed
        return open_svhn(self.path)


class HuggingFace(Data, kind="huggingface"):
    """A folder that Hugging Face's ``Dataset.save_to_disk`` wrote; needs the extra parquet."""

    path: Path
    image: str = "image"
    label: str = "label"
    """The names of the columns."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    """The share of each class held out where the folder has no split to validate on."""

    def find(self, seed: int) -> Splits:
        from graftwerk.data.arrow import open_saved

        return open_saved(self.path, self.image, self.label, self.holdout, seed)


class Merged(Data, kind="merged"):
    """Several data sets as one: classes of one name become one class."""

    parts: tuple[Data, ...] = Field(min_length=1)

    def staged(self) -> Data:
        parts = (
            part.model_copy(update={"stage": part.stage or self.stage}).staged()
            for part in self.parts
        )
        return self.model_copy(update={"parts": tuple(parts)})

    def find(self, seed: int) -> Splits:
        from graftwerk.data.merged import merged

        return merged([part.open(seed) for part in self.parts])
