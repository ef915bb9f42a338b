"""Everything alive that a run is made of, built from its config."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from graftwerk.algorithms import check_execution, check_whole, choose_algorithms
from graftwerk.amendments import Amendments
from graftwerk.axes import Batch, Objective, Sparsity, Step, Sync, World
from graftwerk.data.agreement import check_same_images
from graftwerk.data.dali import decoder
from graftwerk.data.finish import Finish
from graftwerk.data.loader import eval_batches, train_batches
from graftwerk.data.mix import build_mix, check_mix
from graftwerk.data.order import Order
from graftwerk.data.source import Splits
from graftwerk.data.transforms import eval_transform, train_transform
from graftwerk.data.workers import default_workers
from graftwerk.distributed import on_all
from graftwerk.errors import ConfigError
from graftwerk.fit import check_fit
from graftwerk.models.assemble import assemble
from graftwerk.models.factory import build_model, scale_head
from graftwerk.models.weights import load_weights, read_state_dict
from graftwerk.nonfinite import Guard
from graftwerk.optim import schedules
from graftwerk.optim.ema import Ema
from graftwerk.optim.optimizers import apply_rates, build_optimizer
from graftwerk.precision import Precision
from graftwerk.run import BatchSize, Run, accumulation, peak_lr, regrouped
from graftwerk.seeding import seed_everything


@dataclass(frozen=True)
class Plan:
    """What follows from a run, its data and the number of ranks by arithmetic."""

    order: Order
    micro: int
    """Images of a micro-batch on one rank; the last one of a step may hold fewer."""
    share: int
    """Images of a step on this rank."""
    accumulate: int
    """Micro-batches of a step on one rank."""
    steps_per_epoch: int
    total_steps: int
    peak_lr: float


def plan(run: Run, num_images: int, world_size: int, batch: BatchSize | None = None) -> Plan:
    """`batch` has other micro-batches than the run, if any."""
    micro, accumulate = accumulation(batch or run.batch, world_size)
    order = Order(
        num_images=num_images,
        batch_size=run.batch.size,
        seed=run.seed,
        repeats=run.augment.repeats,
        last=run.data.last,
    )
    steps_per_epoch = order.steps_per_epoch
    total_steps = max(1, round(run.epochs * steps_per_epoch)) if run.steps is None else run.steps
    schedules.check(run.schedule, total_steps, steps_per_epoch, key="schedule")
    schedules.check(run.decay_schedule, total_steps, steps_per_epoch, key="decay_schedule")
    share = micro * accumulate
    return Plan(order, micro, share, accumulate, steps_per_epoch, total_steps, peak_lr(run))


class Micro(NamedTuple):
    batch: Batch
    weight: float
    """Its share of the step's images on this rank."""
    last: bool


@dataclass
class Parts:
    """Live objects; none is shared between two runs."""

    run: Run
    world: World
    splits: Splits
    plan: Plan
    amendments: Amendments
    objective: Objective
    model: nn.Module
    """The objective as `sync` wrapped it: what the loop calls."""
    sync: Sync
    sparsity: Sparsity
    optimizer: torch.optim.Optimizer
    precision: Precision
    guard: Guard
    ema: Ema | None
    finish: Finish
    """From what loaders hand over to what the network sees."""
    load_report: list[str]
    """What loading pretrained weights left out, for people."""

    def steps(self, start: int) -> Iterator[Step]:
        order, total = self.plan.steps_per_epoch, self.plan.total_steps
        for number in range(start, total):
            yield Step(number, epoch=number // order, total=total)

    def microbatches(self, batches: Iterator[Batch], step: Step) -> Iterator[Micro]:
        """This rank's share of a step, on the device and mixed; keeps the last one in `step`."""
        count, share = self.plan.accumulate, self.plan.share
        for number, batch in enumerate(itertools.islice(batches, count), start=1):
            step.batch = self.finish(batch, mixed=True)
            yield Micro(step.batch, weight=len(batch.indices) / share, last=number == count)

    def to_device(self, batch: Batch) -> Batch:
        """A loader's batch for the network, unmixed."""
        return self.finish(batch)

    def apply_schedules(self, step: Step) -> tuple[float, float]:
        """Set learning rate and weight decay of this step, and return them."""
        run, plan = self.run, self.plan
        lr_factor, decay_factor = (
            schedules.factor(schedule, step.number, plan.total_steps, plan.steps_per_epoch)
            for schedule in (run.schedule, run.decay_schedule)
        )
        lr_factor *= self.amendments.rate(step.number)
        rates = plan.peak_lr * lr_factor, run.optim.weight_decay * decay_factor
        apply_rates(self.optimizer, *rates)
        return rates

    def clip(self) -> torch.Tensor | None:
        """The 2-norm of all gradients before clipping, where clipping is asked for."""
        if self.run.optim.clip is None:
            return None
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return self.precision.clip(parameters, self.run.optim.clip)

    def average(self, step: Step) -> None:
        """Take the step's weights into their moving average, where one is kept."""
        if self.ema is not None and not step.skipped:
            self.ema.update(self.objective.net, step.number)
            self.sparsity.after_average(self.ema.module)

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        """Micro-batches of this rank from `start_step` to the end of the run."""
        step, total = start_step, self.plan.total_steps
        while step < total:
            members = self.world.generation
            batches = self._batches_of_members(step, self.workers)
            while step < total and members == self.world.generation:
                yield from itertools.islice(batches, self.plan.accumulate)
                step += 1

    def first_batches(self, count: int) -> Iterator[Batch]:
        """The first micro-batches of the run on this rank, read by this process."""
        return itertools.islice(self._batches_of_members(0, workers=0), count)

    def _batches_of_members(self, start_step: int, workers: int) -> Iterator[Batch]:
        """Those of `train_batches` as long as nobody joins or leaves; of one step at least."""
        run, world, plan = self.run, self.world, self.plan
        return train_batches(
            self.splits.train,
            train_transform(run.augment, run.data),
            plan.order,
            seed=run.seed,
            rank=world.rank,
            world_size=world.size,
            micro=-(-plan.share // plan.accumulate),
            workers=workers,
            on_error=run.data.on_error,
            start_step=start_step,
            total_steps=max(1, plan.total_steps),
            place=self.amendments.data_step,
            pin_memory=world.device.type == "cuda",
        )

    def place(self, done: int) -> dict[str, int]:
        """Where in the order of images a run is after `done` steps."""
        epoch, step = divmod(self.amendments.data_step(done), self.plan.steps_per_epoch)
        return {"epoch": epoch, "position": step * self.run.batch.size}

    def regroup(self, micro: int | None = None) -> None:
        """Share the batches anew after members joined or left; steps and schedules stay.

        A micro-batch holds at most `micro` images from now on, or as many as before.
        """
        world, micro = self.world, micro or self.plan.micro
        share, accumulate = regrouped(self.run.batch, world.rank, world.size, micro)
        self.plan = replace(self.plan, micro=micro, share=share, accumulate=accumulate)

    def eval_batches(self) -> Iterator[Batch]:
        """This rank's share of the validation images, each image once over all ranks."""
        run, world = self.run, self.world
        return eval_batches(
            self.splits.val,
            eval_transform(
                run.eval_size,
                run.evaluate.crop,
                run.evaluate.crop_mode,
                run.augment.interpolation,
                run.data,
            ),
            rank=world.rank,
            world_size=world.size,
            batch=run.evaluate.batch or self.plan.micro,
            workers=self.workers,
            on_error=run.data.on_error,
            pin_memory=world.device.type == "cuda",
        )

    @property
    def workers(self) -> int:
        chosen = self.run.data.workers
        return default_workers(self.world.local_size) if chosen is None else chosen

    def begin(self) -> None:
        """What a fresh run, and only a fresh run, does before its first step."""
        batch = self.to_device(next(self.first_batches(1)))
        with self.precision.autocast():
            self.sparsity.attach(
                self.objective,
                self.optimizer,
                self.sync,
                batch,
                seed=self.run.seed,
                total_steps=self.plan.total_steps,
            )
        if self.ema is not None:
            self.ema.set(self.objective.net)

    def state_dict(self) -> dict[str, Any]:
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision.state_dict(),
            "sync": self.sync.state_dict(),
            "sparsity": self.sparsity.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError, and changes nothing, where it is the state of another model."""
        check_fit(state, self.objective, self.optimizer, self.ema.module if self.ema else None)
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.load_state_dict(state["precision"])
        self.sparsity.bind(
            self.objective,
            self.optimizer,
            self.sync,
            seed=self.run.seed,
            total_steps=self.plan.total_steps,
        )
        self.sparsity.load_state_dict(state["sparsity"])
        self.sync.load_state_dict(state["sync"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def open_data(run: Run) -> Splits:
    """The images; without classes where the objective asks for no labels."""
    splits = run.data.open(run.seed)
    if not run.objective.labelled:
        if run.augment.mixes:
            raise ConfigError(
                [
                    "augment.mixup: mixing averages labels, and objective="
                    f"{run.objective.kind} has none; leave augment.mixup and augment.cutmix at 0"
                ]
            )
        return replace(splits, classes=())
    if not splits.classes:
        raise ConfigError(
            [
                f"objective: {run.objective.kind!r} needs labels, and data={run.data.kind} has "
                "none; use data=folder with a folder for each class, or objective=spark"
            ]
        )
    return splits


def build_objective(run: Run, net: nn.Module) -> Objective:
    sizes = {"augment.size": run.augment.height_width, "evaluate.size": run.eval_size}
    return run.objective.build(net, channels=run.data.channels, sizes=sizes)


def build_net(run: Run, num_classes: int) -> tuple[nn.Module, list[str]]:
    """The network with its first weights, on the CPU, and what loading them left out."""
    seed_everything(run.seed)
    net = build_model(
        run.network,
        num_classes=num_classes,
        in_chans=run.data.channels,
        img_size=run.augment.height_width,
    )
    notes: list[str] = []
    if run.model.modules:
        assemble(net, run.model)
    if run.model.pretrained is not None:
        if not run.model.pretrained.exists():
            raise ConfigError([f"model.pretrained: {run.model.pretrained} does not exist"])
        notes = load_weights(net, read_state_dict(run.model.pretrained)).lines()
    if run.model.head_init_scale != 1:
        scale_head(net, run.model.head_init_scale)
    return net, notes


def build(run: Run, world: World, amended: Amendments | None = None) -> Parts:
    amended = amended or Amendments()
    check_execution(run)
    check_whole(run)
    choose_algorithms(run.deterministic)
    splits = on_all(world, lambda: open_data(run))
    check_same_images(world, splits)
    numbers = plan(run, len(splits.train), world.size, amended.batch(run, world))
    check_mix(run.augment, numbers.micro)
    net, load_report = build_net(run, len(splits.classes))
    objective = build_objective(run, net).to(world.device)
    if run.channels_last:
        objective.to(memory_format=torch.channels_last)
    if run.compile != "off":
        objective.compile_net(run.compile)
    sync = run.sync.build(world)
    optimizer = build_optimizer(objective, run.optim, numbers.peak_lr)
    return Parts(
        run=run,
        world=world,
        splits=splits,
        plan=numbers,
        amendments=amended,
        objective=objective,
        model=sync.wrap(objective),
        sync=sync,
        sparsity=run.sparsity.build(),
        optimizer=optimizer,
        precision=Precision(amended.precision(run), world.device),
        guard=Guard(objective, optimizer),
        ema=Ema(objective.net, run.ema.decay, run.ema.warmup) if run.ema.decay else None,
        finish=Finish(
            run.data,
            world.device,
            torch.channels_last if run.channels_last else torch.contiguous_format,
            build_mix(run.augment, len(splits.classes), getattr(run.objective, "smoothing", 0.0)),
            decoder(run.augment, world.device),
        ),
        load_report=load_report,
    )
