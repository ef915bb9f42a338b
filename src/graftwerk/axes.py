"""What the loop asks of its three axes. A new method is a subclass here and a config node there.

The base classes are complete: `Sync` is one process that agrees with nobody, `Sparsity` is the
dense network. The loop calls every hook in the order that `train.py` shows; that order is the
mathematics (docs/adr/0002-order-of-the-loop.md).

Shapes: n images, c channels, h rows, w columns, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]


class Erased(NamedTuple):
    """Boxes that random erasing covers with values of its own, after normalisation."""

    boxes_k5: Tensor
    """(image, top, left, rows, columns) of each, on the CPU."""
    values: Tensor
    """float32, all boxes' values one after the other, each [c, rows, columns]."""


class Encoded(NamedTuple):
    """Images as in their files, and the crops that the device is to decode of them."""

    data: Tensor
    """The bytes of all, one image after another."""
    crops_n6: Tensor
    """(bytes, top, left, height, width, 1 if mirrored) of each."""


class Batch(NamedTuple):
    """A micro-batch. Targets are class numbers [n], or probabilities [n, k] after mixing.

    Images are uint8 as loaders hand them over, and float from `data.finish` on.
    """

    images_nchw: Tensor
    targets: Tensor
    indices: Tensor
    """Positions [n] of the images in their data set."""
    problems: Sequence[str] = ()
    """A sentence for each image that could not be read, naming the file."""
    erased: Erased | None = None
    """What is still to be erased; None where nothing is, or all was."""
    encoded: Encoded | None = None
    """The images, where they are still to be decoded; `images_nchw` is empty then."""


class Output(NamedTuple):
    """What an objective returns for a micro-batch: the mean loss, and metrics to log (detached)."""

    loss: Tensor
    metrics: Mapping[str, Tensor]


@dataclass
class Step:
    """One optimizer step as the hooks see it. `number` counts from 0 over the whole run."""

    number: int
    epoch: int
    total: int
    """Steps in the whole run."""
    batch: Batch | None = None
    """The micro-batch whose backward pass ran last, on the device, for scores that need a pass."""
    skipped: bool = False
    """True where loss or gradients are not finite: the optimizer moves no weight. Known from
    `Sparsity.before_step` on; with replicas that differ, each has a word of its own."""


class Objective(nn.Module):
    """What is minimised, and which parameters train.

    `net` is what is evaluated, averaged, exported, and the only part that may be sparsified.
    Surgery on it happens in `__init__`, never later. Parameters with ``requires_grad=False`` are
    frozen: neither the optimizer nor DDP sees them.
    """

    net: nn.Module
    best = ("top1", "max")
    """The evaluation score that ranks checkpoints, and whether "max" or "min" is better."""

    def forward(self, batch: Batch) -> Output:
        """The training loss of a micro-batch."""
        raise NotImplementedError

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over the images of the batch, by score, as scalars; the evaluator divides them.

        Called in eval mode without autograd.
        """
        raise NotImplementedError

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Images to look at, by name: [n, v, c, h, w], v versions of each, as the batch's images.

        Called like `evaluate`, with a few images of the validation split, on rank 0 alone.
        """
        del batch
        return {}

    def compile_net(self, mode: str) -> None:
        """Have torch compile what takes the time, in place."""
        self.net.compile(mode=mode)

    def no_weight_decay(self) -> set[str]:
        """Names, relative to the objective, of parameters that are never decayed."""
        named: Callable[[], Iterable[str]] = getattr(self.net, "no_weight_decay", set[str])
        return {f"net.{name}" for name in named()}


class Sync:
    """How replicas agree. This one is a single process that agrees with nobody."""

    replicated = True
    """False: every rank holds different weights, and saves its own checkpoint shard."""

    def wrap(self, objective: Objective) -> nn.Module:
        """The module whose forward and backward the loop calls; same parameters."""
        return objective

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Called once before the first step, after a checkpoint (if any) was loaded."""

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch; communicates only in the `last`."""
        del last
        return nullcontext()

    def mix(self) -> None:
        """Just before the step: ``x <- W x``. Gradients stand at their final values."""

    def publish(self) -> None:
        """Just after the step: send ``x``; overlaps the whole next forward and backward."""

    def mean_(self, tensor: Tensor) -> Tensor:
        """In place, the mean over ranks, so that decisions on it are the same everywhere."""
        return tensor

    @contextmanager
    def averaged(self, net: nn.Module) -> Generator[nn.Module]:
        """The network to evaluate and export: the average of all replicas, buffers included.

        A collective call. On exit `net` is what it was.
        """
        yield net

    def metrics(self) -> dict[str, float]:
        """Scalars for the log, such as the bytes sent."""
        return {}

    def withheld(self) -> str | None:
        """Since the last call, why this replica has kept its weights to itself, if it has."""
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


class Sparsity:
    """Which weights exist. This one is the dense network."""

    def attach(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        sync: Sync,
        batch: Batch,
        *,
        seed: int,
        total_steps: int,
    ) -> None:
        """Called once before the first step of a fresh run; `batch` serves scores that need one.

        Under the autocast of training, so that passes take the time that they will take there. Not
        called on resume: `load_state_dict` is, after `bind`.
        """
        del batch
        self.bind(objective, optimizer, sync, seed=seed, total_steps=total_steps)

    def bind(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        sync: Sync,
        *,
        seed: int,
        total_steps: int,
    ) -> None:
        """Keep what the hooks will need; choose nothing."""

    def before_step(self, step: Step) -> None:
        """Gradients exist, unscaled and before clipping: score, prune, grow."""

    def after_step(self, step: Step) -> None:
        """The optimizer has stepped: weights leave the step masked."""

    def after_average(self, average: nn.Module) -> None:
        """The moving average of the network took in its weights: it leaves masked as they are."""

    def metrics(self) -> dict[str, float]:
        """Scalars for the log, such as the density."""
        return {}

    def notes(self) -> list[str]:
        """What was chosen at the start, in words."""
        return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


class Control(Protocol):
    """Small facts among all ranks, apart from the group that moves gradients.

    The calls are collective: every rank makes the same ones in the same order.
    """

    def gather(self, fact: Any) -> list[Any]:
        """`fact` of every rank, in rank order."""
        ...

    def sum_(self, tensor: Tensor) -> Tensor:
        """In place, the sum over ranks."""
        ...

    def boundary(self, flags: Sequence[int]) -> list[int]:
        """After each step: hand in flags ≥ 0 without waiting for the others.

        Returns the largest of any rank, of an earlier boundary; at first zeros.
        """
        ...


@dataclass
class World:
    """The group of ranks as this process sees it; one process without a group has size 1.

    A group that survives the death of members (sync=gossip) changes rank and size as it goes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Control | None = None
    """None where the size is 1 for good."""
    store: Store | None = None
    """What ranks of a fixed group tell each other outside of collectives."""
    generation: int = 0
    """How often the members have changed."""
    done: int = 0
    """Steps finished, for those who look from outside."""
    rollbacks: int = 0
    """How often the run has gone back to a checkpoint."""
    newcomer: bool = False
    """Joins a group that is already training; of size 1 until then."""

    @property
    def main(self) -> bool:
        return self.rank == 0
