"""Config of the optimizer and its schedules."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from graftwerk.config import Choice, Node


class Optim(Node):
    """An optimizer by timm's name, its rate and its parameter groups.

    Beside timm's: `accumadam` and `accumadamw` (also `accum_adam…`), with ``args.accum_iter``.
    """

    main = "name"

    name: str = "sgd"
    lr: float = Field(default=0.1, ge=0)
    lr_per: int | None = Field(default=None, ge=1)
    """If set, `lr` is meant for this many images and scales with `batch.size`."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[float, float] | None = None
    eps: float | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Rate of a layer relative to the layer above it."""
    layer_groups: Literal["timm", "convnext", "resnet"] = "timm"
    """Which parameters are a layer: timm's blocks, or the groups of the ConvNeXt paper, or those
    in which SparK fine-tunes ResNets."""
    clip: float | None = Field(default=None, gt=0)
    """Largest 2-norm of all gradients together."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimizer, as timm takes them."""

    @field_validator("name")
    @classmethod
    def _as_registered(cls, name: str) -> str:
        return name.replace("accum_adam", "accumadam")  # timm takes what precedes a _ for Lookahead


class Schedule(Choice):
    """Factors on a peak value, as a pure function of the step (`optim/schedules.py`)."""

    default_kind = "cosine"

    warmup_epochs: float = Field(default=0.0, ge=0)
    warmup_steps: int | None = Field(default=None, ge=0)
    """Wins over `warmup_epochs`."""
    warmup_start: float = Field(default=0.0, ge=0)
    """The factor at step 0 of the warm-up."""
    warmup_reaches_peak: bool = False
    """The last warm-up step has factor 1 (ConvNeXt), not only the step after it."""
    warmup_prefix: bool = True
    """The schedule begins after the warm-up; False: the warm-up replaces its beginning (timm)."""
    per: Literal["step", "epoch"] = "step"
    """Values change each step, or stay for an epoch."""
    lag: int = Field(default=0, ge=0)
    """The first value is used for so many steps or epochs more, and all later ones are late by as
    many: 1 epoch in DeiT's code and in what was built on it."""


Share = Annotated[float, Field(gt=0, lt=1)]


class Constant(Schedule, kind="constant"):
    """Factor 1 throughout, after the warm-up."""


class Cosine(Schedule, kind="cosine"):
    """Half a cosine from 1 to `end`."""

    end: float = Field(default=0.0, ge=0)
    reaches_end: bool = False
    """The last step has factor `end` (SparK), not only the step after it (ConvNeXt)."""


class Linear(Schedule, kind="linear"):
    """A straight line from 1 to `end`."""

    end: float = Field(default=0.0, ge=0)
    reaches_end: bool = False


class Steps(Schedule, kind="step"):
    """Multiplied by `factor` at each of the `milestones`, given as shares of the run."""

    milestones: tuple[Share, ...] = (0.5, 0.75)
    factor: float = Field(default=0.1, gt=0)


class Ema(Node):
    """Exponential moving average of the weights: ``e <- d e + (1 - d) x`` after each step."""

    main = "decay"

    decay: float | None = Field(default=None, gt=0, lt=1)
    """Unset: no average is kept."""
    warmup: bool = False
    """timm's warm-up of the decay."""
