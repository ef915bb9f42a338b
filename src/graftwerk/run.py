"""A whole experiment as one frozen tree, and what follows from it by arithmetic."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from graftwerk import config
from graftwerk.config import Node
from graftwerk.data.config import Augment, Data, Digits, Size
from graftwerk.errors import ConfigError
from graftwerk.launch.config import Launch
from graftwerk.log.config import Log
from graftwerk.models.config import Model
from graftwerk.objectives.config import Objective, Supervised
from graftwerk.optim.config import Constant, Cosine, Ema, Optim, Schedule
from graftwerk.sparsity.config import Dense, Sparsity
from graftwerk.sync.config import AllReduce, Sync

if TYPE_CHECKING:
    from graftwerk.amendments import Amendments
    from graftwerk.axes import World
    from graftwerk.parts import Parts

HOW_NOT_WHAT = (
    "resume",
    "processes",
    "batch.micro",
    "batch.fit",
    "device",
    "log",
    "launch",
    "save",
    "data.workers",
    "data.stage",
    "faults",
)
"""Keys that don't change what is learned, or only how it is rounded and shared by ranks: they don't
count in a run folder's name, so that the same run may go on with others."""

UNITS = ("step", "epoch", "minute")


def _interval(text: str) -> str:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(step|epoch|minute|min)s?\s*", text)
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"should be like '500 steps', '1 epoch' or '10 minutes' (got {text!r})")
    unit = "minute" if match[2] == "min" else match[2]
    if unit == "step" and not float(match[1]).is_integer():
        raise ValueError(f"steps should be a whole number (got {text!r})")
    return f"{float(match[1]):g} {unit}{'' if float(match[1]) == 1 else 's'}"


Interval = Annotated[str, AfterValidator(_interval)]


def parse_interval(interval: str) -> tuple[float, str]:
    """``"10 minutes"`` → ``(10.0, "minute")``."""
    number, unit = interval.split()
    return float(number), unit.removesuffix("s")


class BatchSize(Node):
    """`size` images make one optimizer step, over all ranks and accumulated micro-batches."""

    main = "size"

    size: int = Field(default=128, ge=1)
    micro: int | None = Field(default=None, ge=1)
    """Images in one forward pass of one rank; unset: the whole share of a rank."""
    fit: bool = False
    """Before the first start on a kind of device, find the largest micro-batch that fits its
    memory, at most `micro`."""


class Evaluate(Node):
    every: float = Field(default=1.0, gt=0)
    """Epochs between evaluations; the last step is always evaluated."""
    batch: int | None = Field(default=None, ge=1)
    """Images in one forward pass; unset: as in training."""
    size: Size | None = None
    """Test resolution; unset: `augment.size`."""
    crop: float = Field(default=0.875, gt=0, le=1)
    """The centre crop is this share of the resized image."""
    crop_mode: Literal["center", "squash", "border"] = "center"


class Save(Node):
    main = "every"

    every: Interval = "1 epoch"
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept; the best one is kept beside them."""
    asynchronous: bool = True
    """Copy the state to memory and write it while training goes on; never more than one behind."""
    patience: float = Field(default=30.0, ge=0)
    """Seconds during which the last save is tried again where the disk takes no more."""


class Faults(Node):
    """What is done where something goes wrong (docs/reliability.md)."""

    patience: int = Field(default=5, ge=1)
    """Steps in a row whose loss or gradients are not finite, after which the run goes back to its
    newest checkpoint and leaves out the images since."""
    rollbacks: int = Field(default=3, ge=0)
    """How often it goes back before it gives up."""
    then: Literal["skip", "precision", "rate"] = "precision"
    """What else changes where it goes back: nothing, fp16 → bf16 → fp32, or the learning rate."""
    factor: float = Field(default=0.5, gt=0, lt=1)
    """On the learning rate."""
    start_timeout: float = Field(default=1200.0, gt=0)
    """Seconds within which all processes must have come, and that the first steps, an evaluation
    or a save may take."""
    hang: float | None = Field(default=20.0, ge=2)
    """Median steps without progress after which a run is ended, to be started again; null: never.
    """
    hang_floor: float = Field(default=300.0, gt=0)
    """Seconds without progress that are no hang, however short a step is."""
    margin: float = Field(default=60.0, ge=0)
    """Seconds before the end of a Slurm job, at most a tenth of its time, at which a run saves and
    ends by itself."""


class Run(Node):
    """One training run. Every key can be set on the command line."""

    name: str = Field(default="run", pattern=r"^[\w.+-]+$")
    seed: int = Field(default=0, ge=0)
    epochs: float = Field(default=90.0, gt=0)
    steps: int | None = Field(default=None, ge=0)
    """Optimizer steps in all; wins over `epochs`. 0: only evaluate, and save what there is."""

    objective: Objective = Supervised()
    sync: Sync = AllReduce()
    sparsity: Sparsity = Dense()

    model: Model = Model()
    data: Data = Digits()
    augment: Augment = Augment()
    batch: BatchSize = BatchSize()
    optim: Optim = Optim()
    schedule: Schedule = Cosine()
    decay_schedule: Schedule = Constant()
    """Of the weight decay."""
    ema: Ema = Ema()

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = True
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    deterministic: bool = True
    """Only algorithms that give the same bits each time, where torch has them; slower on GPUs."""

    evaluate: Evaluate = Evaluate()
    save: Save = Save()
    log: Log = Log()
    launch: Launch = Launch()
    faults: Faults = Faults()

    processes: int = Field(default=1, ge=1)
    """Local workers that `graftwerk run` starts; ignored under torchrun and srun."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    resume: Literal["auto", "never"] = "auto"

    @property
    def hash(self) -> str:
        return config.digest(self, without=HOW_NOT_WHAT)

    @property
    def folder(self) -> Path:
        return self.log.folder / f"{self.name}-{self.hash}"

    @property
    def eval_size(self) -> tuple[int, int]:
        """(Rows, columns) of the images that are evaluated."""
        size = self.evaluate.size or self.augment.size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def network(self) -> Model:
        """What is built: `model`, or what the objective trains in its place."""
        return self.objective.network(self.model)

    def build(self, world: World, amended: Amendments | None = None) -> Parts:
        """Everything alive that the loop needs, new for every call."""
        from graftwerk.parts import build

        return build(self, world, amended)


def accumulation(batch: BatchSize, world_size: int) -> tuple[int, int]:
    """(micro-batch of a rank, micro-batches per step), so that their product is `batch.size`."""
    share, rest = divmod(batch.size, world_size)
    if rest or share == 0:
        raise ConfigError(
            [f"batch.size: {batch.size} images can't be shared equally by {world_size} processes"]
        )
    micro = batch.micro or share
    if share % micro:
        raise ConfigError(
            [
                f"batch.micro: {micro} does not divide the {share} images of a process "
                f"(batch.size={batch.size} over {world_size} processes)"
            ]
        )
    return micro, share // micro


def regrouped(batch: BatchSize, rank: int, world_size: int, micro: int) -> tuple[int, int]:
    """(images of a rank in a step, its micro-batches of at most `micro`), for any number of ranks.

    For groups that lose or gain members: the batch of a step stays what it was, and shares differ
    by an image where they must.
    """
    share = len(range(rank, batch.size, world_size))
    return share, -(-share // micro)


def peak_lr(run: Run) -> float:
    """The rate at factor 1: `optim.lr`, scaled linearly with the batch where `lr_per` is set."""
    scale = run.batch.size / run.optim.lr_per if run.optim.lr_per else 1.0
    return run.optim.lr * scale


def batch_in_words(size: int, processes: int, accumulate: int, micro: int) -> str:
    """``64 = 2 processes × 1 micro-batch × 32 images``."""
    shares = [
        f"{number} {noun if number == 1 else plural}"
        for number, noun, plural in (
            (processes, "process", "processes"),
            (accumulate, "micro-batch", "micro-batches"),
            (micro, "image", "images"),
        )
    ]
    return f"{size} = {' × '.join(shares)}"
