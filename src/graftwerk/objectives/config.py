"""Config of the objective axis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from graftwerk.config import Choice
from graftwerk.models.config import Model
from graftwerk.models.division import Divide, Division, hybrid, shape

if TYPE_CHECKING:
    from torch import nn

    from graftwerk import axes


class Objective(Choice):
    """What is minimised, and which parameters train."""

    default_kind = "supervised"
    labelled: ClassVar[bool] = True
    """Whether it needs labels; without, the network has no head."""
    whole: ClassVar[bool] = True
    """Whether all of the network may change; else it can't be sparsified."""

    def network(self, model: Model) -> Model:
        """The network that is trained: the run's own, unless it is trained inside another."""
        return model

    def build(
        self, net: nn.Module, *, channels: int, sizes: Mapping[str, tuple[int, int]]
    ) -> axes.Objective:
        """The live objective of images of `channels`; `sizes` are (rows, columns) by their key."""
        raise NotImplementedError


class Supervised(Objective, kind="supervised"):
    """Classification of labelled images."""

    loss: Literal["ce", "bce"] = "ce"
    smoothing: float = Field(default=0.0, ge=0, lt=1)

    def build(
        self, net: nn.Module, *, channels: int, sizes: Mapping[str, tuple[int, int]]
    ) -> axes.Objective:
        del channels, sizes
        from graftwerk.objectives.supervised import Supervised

        return Supervised(net, loss=self.loss, smoothing=self.smoothing)


class Spark(Objective, kind="spark"):
    """Masked pre-training of a convolutional network; uses no labels."""

    labelled: ClassVar[bool] = False

    execution: Literal["packed", "masked", "auto"] = "packed"
    """Compute visible sites only, or all of them and multiply by the mask, as published; `auto`
    measures both on the first batch. The results are the same but for rounding."""
    mask_ratio: float = Field(default=0.6, gt=0, lt=1)
    """The share of the patches that is hidden."""
    patch: int | None = Field(default=None, ge=1)
    """Side of a patch in pixels; unset: the encoder's stride."""
    width: int = Field(default=768, ge=1)
    """Channels of the decoder at its deepest level: 768 as published today, 512 at first."""
    depth: int | None = Field(default=None, ge=1)
    """Blocks of the decoder, each of which doubles the size; unset: up to the image's own. Fewer
    are faster, and another decoder than the published one."""
    norm: Literal["auto", "batch", "layer"] = "auto"
    """Of the features before they are filled; auto: batch where the network has batch norm."""
    pretrained: Path | None = None
    """A checkpoint of SparK with its decoder, of the current code or of the first release. The
    encoder alone is `model.pretrained`'s matter."""

    def build(
        self, net: nn.Module, *, channels: int, sizes: Mapping[str, tuple[int, int]]
    ) -> axes.Objective:
        from graftwerk.objectives.spark import Spark

        objective = Spark(net, channels=channels, **self.model_dump())
        objective.check(sizes)
        return objective


class Incubate(Supervised, kind="incubate"):
    """One module of a network, trained inside a small trained network in the place of its own."""

    whole: ClassVar[bool] = False

    divide: Divide
    """Blocks of each module of the network (`models/division.py`)."""
    meta_divide: Divide
    """Blocks of each module of the meta network."""
    index: int = Field(ge=0)
    """The module that is trained, from 0."""
    meta: Path
    """The trained meta network: a run, an exported folder, a weight file."""
    frozen_drop: bool = True
    """Drop path and dropout work in the frozen modules too, as published."""
    frozen_norm: Literal["eval", "batch"] = "eval"
    """Frozen batch norms use their running statistics, or those of the batch; none is changed."""

    @model_validator(mode="after")
    def _modules_belong_together(self) -> Incubate:
        if shape(self.divide) != shape(self.meta_divide):
            raise ValueError(
                f"meta_divide needs a number for each of divide, which has {len(self.divide)} "
                f"modules (got {len(self.meta_divide)})"
            )
        if self.index >= len(self.divide):
            raise ValueError(f"index should be less than {len(self.divide)}, the number of modules")
        return self

    def network(self, model: Model) -> Model:
        """The meta network with one module of the run's model in it."""
        depths = model.depths
        if depths is None:
            from graftwerk.models.factory import own_depths

            depths = own_depths(model)
        division = Division.of(self.divide, depths, key="objective.divide")
        inside = division.like(hybrid(self.meta_divide, self.divide, self.index))
        return model.model_copy(update={"depths": inside.depths})

    def build(
        self, net: nn.Module, *, channels: int, sizes: Mapping[str, tuple[int, int]]
    ) -> axes.Objective:
        del channels, sizes
        from graftwerk.objectives.incubate import Incubate

        return Incubate(net, self)
