"""The smallest methods that need every hook of the loop, each a caricature of a real one.

`anchor` (gossip) pulls weights towards what every rank published and holds rank-dependent state;
`halving` (dynamic sparse training) prunes and masks; `decoded` (SparK) converts the network and
trains a decoder that is never exported; `stem_frozen` (incubation) trains only part of the network;
`unhurried` has steps that last; `poisoned` has images that no network can learn from; `interrupted`
is sent a signal while it is evaluated.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftwerk import axes
from graftwerk.axes import Batch, Output, Step, World
from graftwerk.data.config import Augment, Digits
from graftwerk.log.config import Log
from graftwerk.models.config import Model
from graftwerk.objectives.config import Objective
from graftwerk.objectives.supervised import Supervised
from graftwerk.optim.config import Ema, Optim
from graftwerk.run import BatchSize, Evaluate, Run, Save
from graftwerk.sparsity.config import Sparsity
from graftwerk.sync.config import Sync


class Anchor(Sync, kind="anchor"):
    def build(self, world: World) -> axes.Sync:
        return AnchorSync(world)


class AnchorSync(axes.Sync):
    """``x <- (x + a) / 2`` before the step, ``a <- (x + a) / 2`` after; at first a = x + rank."""

    replicated = False

    def __init__(self, world: World) -> None:
        self._world = world
        self._anchor: list[Tensor] = []
        self.mixed = 0

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        del optimizer
        self._parameters = list(model.parameters())
        if not self._anchor:
            self._anchor = [p.detach() + self._world.rank for p in self._parameters]

    @torch.no_grad()
    def mix(self) -> None:
        self.mixed += 1
        for parameter, anchor in zip(self._parameters, self._anchor, strict=True):
            parameter.lerp_(anchor, 0.5)

    @torch.no_grad()
    def publish(self) -> None:
        for parameter, anchor in zip(self._parameters, self._anchor, strict=True):
            anchor.lerp_(parameter, 0.5)

    @contextmanager
    def averaged(self, net: nn.Module) -> Generator[nn.Module]:
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                self.mean_(tensor)
        yield net
        net.load_state_dict(before)

    def mean_(self, tensor: Tensor) -> Tensor:
        if self._world.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor.div_(self._world.size)

    def state_dict(self) -> dict[str, Any]:
        return {"anchor": self._anchor, "mixed": self.mixed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._anchor, self.mixed = state["anchor"], state["mixed"]


class Halving(Sparsity, kind="halving"):
    every: int = 2

    def build(self) -> axes.Sparsity:
        return HalvingSparsity(self.every)


class HalvingSparsity(axes.Sparsity):
    """Keeps the larger half of each matrix by ``|w g|``, chosen again every few steps."""

    def __init__(self, every: int) -> None:
        self._every = every
        self.masks: dict[str, Tensor] = {}

    def attach(self, objective: Any, optimizer: Any, sync: Any, batch: Batch, **facts: Any) -> None:
        self.bind(objective, optimizer, sync, **facts)
        objective(batch).loss.backward()
        self._choose()
        optimizer.zero_grad()
        self._mask()

    def bind(self, objective: Any, optimizer: Any, sync: Any, **facts: Any) -> None:
        del optimizer, facts
        self._sync = sync
        self._weights = {n: p for n, p in objective.net.named_parameters() if p.ndim > 1}

    def before_step(self, step: Step) -> None:
        if step.number % self._every == 0:
            self._choose()

    def after_step(self, step: Step) -> None:
        del step
        self._mask()

    @torch.no_grad()
    def _choose(self) -> None:
        for name, weight in self._weights.items():
            assert weight.grad is not None
            score = self._sync.mean_((weight * weight.grad).abs())
            self.masks[name] = (score >= score.flatten().median()).to(weight.dtype)

    @torch.no_grad()
    def _mask(self) -> None:
        for name, weight in self._weights.items():
            weight.mul_(self.masks[name])

    def metrics(self) -> dict[str, float]:
        kept = torch.cat([mask.flatten() for mask in self.masks.values()])
        return {"density": kept.mean().item()}

    def state_dict(self) -> dict[str, Any]:
        return {"masks": self.masks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks = state["masks"]


class Decoded(Objective, kind="decoded"):
    def build(self, net: nn.Module, **facts: Any) -> axes.Objective:
        del facts
        return DecodedObjective(net)


class DecodedObjective(axes.Objective):
    """Reconstructs the mean pixel of images whose upper half is hidden."""

    best = ("loss", "min")

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        net.reset_classifier(0)  # pyright: ignore[reportCallIssue]
        self.decoder = nn.Linear(net.num_features, 1)  # pyright: ignore[reportArgumentType]

    def forward(self, batch: Batch) -> Output:
        images = batch.images_nchw
        hidden = images.clone()
        hidden[:, :, : images.shape[2] // 2] = 0
        loss = F.mse_loss(self.decoder(self.net(hidden)).squeeze(1), images.mean((1, 2, 3)))
        return Output(loss, {})

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.forward(batch).loss * len(batch.indices)}


class StemFrozen(Objective, kind="stem_frozen"):
    def build(self, net: nn.Module, **facts: Any) -> axes.Objective:
        del facts
        objective = Supervised(net, loss="ce", smoothing=0.0)
        for name, parameter in objective.net.named_parameters():
            parameter.requires_grad_(not name.startswith("stem"))
        return objective


class Unhurried(Objective, kind="unhurried"):
    rank: int | None = None
    """Who is; none: all are."""

    def build(self, net: nn.Module, **facts: Any) -> axes.Objective:
        del facts
        mine = self.rank is None or str(self.rank) == os.environ["RANK"]
        return UnhurriedObjective(net, seconds=0.2 if mine else 0.0)


class UnhurriedObjective(Supervised):
    """A step takes its time and no processor, for runs that go on while a test does something."""

    def __init__(self, net: nn.Module, seconds: float) -> None:
        super().__init__(net, loss="ce", smoothing=0.0)
        self._seconds = seconds

    def forward(self, batch: Batch) -> Output:
        time.sleep(self._seconds)
        return super().forward(batch)


class Interrupted(Objective, kind="interrupted"):
    times: int = 1
    """So often an evaluation is met by SIGTERM; `log` has a byte for each."""
    log: str = ""
    rank: int = 0

    def build(self, net: nn.Module, **facts: Any) -> axes.Objective:
        del facts
        return InterruptedObjective(net, self)


class InterruptedObjective(Supervised):
    """On one rank a scheduler wants the machine back, in the middle of an evaluation."""

    def __init__(self, net: nn.Module, config: Interrupted) -> None:
        super().__init__(net, loss="ce", smoothing=0.0)
        self._config = config

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        log, mine = Path(self._config.log), os.environ.get("RANK", "0") == str(self._config.rank)
        if mine and log.stat().st_size < self._config.times:
            log.write_bytes(log.read_bytes() + b"x")
            os.kill(os.getpid(), signal.SIGTERM)
        return super().evaluate(batch)


class Poisoned(Objective, kind="poisoned"):
    images: tuple[int, ...] = ()
    """Positions of those whose loss, or gradient, is not finite."""
    spoils: Literal["loss", "gradient"] = "loss"

    def build(self, net: nn.Module, **facts: Any) -> axes.Objective:
        del facts
        return PoisonedObjective(net, self)


class PoisonedObjective(Supervised):
    def __init__(self, net: nn.Module, config: Poisoned) -> None:
        super().__init__(net, loss="ce", smoothing=0.0)
        self._config = config

    def forward(self, batch: Batch) -> Output:
        output = super().forward(batch)
        if not set(batch.indices.tolist()) & set(self._config.images):
            return output
        if self._config.spoils == "loss":
            return output._replace(loss=output.loss * torch.nan)
        return output._replace(loss=output.loss + (output.loss * 0).sqrt())


class Greedy(Objective, kind="greedy"):
    images: tuple[int, ...] = ()
    """Positions of those that take the memory; none: all do."""
    megabytes: int = 100
    """For each image of such a micro-batch."""
    allowed: int | None = None
    """Megabytes that the process may take beside what it has, for good."""

    def build(self, net: nn.Module, **facts: Any) -> axes.Objective:
        del facts
        return GreedyObjective(net, self)


class GreedyObjective(Supervised):
    """Whose process has a limit of memory, as `ulimit -v` sets one."""

    def __init__(self, net: nn.Module, config: Greedy) -> None:
        super().__init__(net, loss="ce", smoothing=0.0)
        self._config = config
        free = resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
        if config.allowed is not None and free:
            own = psutil.Process().memory_info().vms
            resource.setrlimit(resource.RLIMIT_AS, (own + (config.allowed << 20), -1))

    def forward(self, batch: Batch) -> Output:
        images = set(self._config.images)
        if not images or set(batch.indices.tolist()) & images:
            torch.empty(len(batch.indices), self._config.megabytes, 1 << 20, dtype=torch.uint8)
        return super().forward(batch)


def tiny() -> Run:
    """Ten steps of a network without BatchNorm, with everything that has state."""
    return Run(
        name="tiny",
        steps=10,
        data=Digits(holdout=0.05),
        model=Model(name="test_convnext", drop_path=0.1),
        augment=Augment(size=32, crop="pad", mixup=0.2, hflip=0.5, policy="trivial"),
        evaluate=Evaluate(every=0.25, crop=1.0),
        batch=BatchSize(size=64, micro=16),
        optim=Optim(name="adamw", lr=1e-3, weight_decay=0.05, clip=1.0),
        ema=Ema(decay=0.9),
        save=Save(every="2 steps"),
        log=Log(tensorboard=False),
    )
