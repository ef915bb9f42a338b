"""What happens beside training and never changes it: averages, logs, evaluations, checkpoints."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from graftwerk import memory, recovery
from graftwerk.axes import Batch, Step
from graftwerk.distributed import gather, on_main
from graftwerk.elastic.group import Group
from graftwerk.evaluate import LeftError
from graftwerk.journal import open_journal
from graftwerk.ledger import Ledger
from graftwerk.log.logbook import Logbook
from graftwerk.meter import Meter
from graftwerk.parts import Parts
from graftwerk.regroup import difference, shape
from graftwerk.samples import Samples
from graftwerk.saving import Saving, checkpoints_of
from graftwerk.scorekeeper import Scorekeeper
from graftwerk.seeding import random_state, restore_random_state
from graftwerk.signals import Agreement, StoppedError
from graftwerk.watchdog import guarding


class Observer:
    """Watches one run. All ranks hold one; only rank 0 writes logs."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        run = parts.run
        self.folder: Path = run.folder
        self.checkpoints = checkpoints_of(parts)
        self.agreement = Agreement(parts.world, margin=run.faults.margin)
        self.watchdog = guarding(run.faults, self.folder, parts.world)
        self.watchdog.pace.follow(parts.objective)
        self.meter = Meter(parts.world.device)
        self.samples = Samples()
        self.run_id: str | None = None
        self.ledger = Ledger(parts.world)
        self.saving = Saving(parts, self.checkpoints, self.ledger.event)
        slowly = self.watchdog.slowly
        self.keeper = Scorekeeper(parts, self.ledger, self.meter, slowly)
        self._owed = False
        """A checkpoint is due as soon as steps count again."""
        self._waited = 0.0
        self._generation = parts.world.generation
        self._exit = contextlib.ExitStack()

    # ------------------------------------------------------------ life of a run

    def __enter__(self) -> Self:
        self._exit.enter_context(self.agreement.listening())
        self._exit.enter_context(self.watchdog.watching())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.watchdog.doing = "closing the logs"
        if kind is not None and not issubclass(kind, KeyboardInterrupt):
            self.saving.writer.wait_alone()
        if self.ledger.logbook is not None:
            self.ledger.logbook.close("finished" if kind is None else f"{kind.__name__}: {error}")
        self._exit.close()

    def resume(self) -> int:
        """Load the newest intact checkpoint, or begin anew; the step to go on with.

        A newcomer takes the state of rank 0 instead.
        """
        parts = self.parts
        if parts.world.newcomer:
            return self._enter()
        if parts.world.main:
            self.checkpoints.clear()
        state, manifest, rejected = self.checkpoints.resume(
            replicated=parts.sync.replicated, config=parts.run.hash
        )
        start = 0
        if state is None:
            parts.begin()
        else:
            parts.load_state_dict(state["parts"])
            self.load_state_dict(state["observer"])
            own = state["ranks"][parts.world.rank % len(state["ranks"])]
            restore_random_state(own["random"])
            self.meter.load([rank["meter"] for rank in state["ranks"]], parts.world)
            parts.guard.streak = own.get("streak", 0)
            start = manifest["step"]
        self._open_logbook(start)
        if restarts := int(os.environ.get("SLURM_RESTART_COUNT", "0")):
            job = os.environ.get("SLURM_JOB_ID", "")
            self.ledger.event(
                "requeued", step=start, reason=f"job {job} started {restarts + 1} times"
            )
        if reason := difference(manifest, parts):
            self.ledger.event("resumed_elastically", reason=reason)
        if parts.world.generation != self._generation:
            parts.regroup()
            self._regrouped(start)
        for reason in rejected:
            self.ledger.event("checkpoint_rejected", reason=reason)
        for line in memory.remarks(parts):
            self.ledger.event("micro_batch", note=line)
        if notes := parts.sparsity.notes():
            self.ledger.event("execution", note=notes)
        for line in parts.load_report if start == 0 else []:
            self.ledger.event("pretrained", note=line)
        self._recorded = start
        self._record_clock = time.monotonic()
        return start

    def _enter(self) -> int:
        group, parts = self._group(), self.parts
        state = group.enter()
        parts.regroup(parts.amendments.at_most(state["micro"], parts.run, parts.world))
        parts.load_state_dict(state["parts"])
        self.load_state_dict(state["observer"])
        self._recorded = state["step"]
        self._record_clock = time.monotonic()
        self._regrouped(state["step"])
        return state["step"]

    def catch_up(self, start: int) -> None:
        """Make up the evaluation that a signal cut short. A call of all ranks together."""
        try:
            better = self.keeper.catch_up(start, self.agreement.asked)
        except LeftError as error:
            raise StoppedError(error.number, start) from None
        if better:
            self.save(start, better=True, last=False)

    def finish(self) -> dict[str, float]:
        """The last scores; of a run without steps, the only ones."""
        if self.parts.plan.total_steps == 0:
            self.save(0, better=self.keeper.evaluate(0, lr=0.0), last=True)
        self.ledger.event("finished", **self.keeper.scores)
        return self.keeper.scores

    def timing(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time spent waiting for them is counted."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            waited = time.monotonic() - began
            self._waited += waited
            self.watchdog.pace.busy += waited
            if batch is None:
                return
            for problem in batch.problems:
                self.ledger.image_skipped(problem)
            self.samples.draw(batch.indices)
            yield batch

    def _open_logbook(self, start: int) -> None:
        """Open rank 0's logbook; the others learn the run's id, which their checkpoints carry."""
        self.run_id = on_main(self.parts.world, lambda: self._logbook_of_main(start).run_id)

    def _logbook_of_main(self, start: int) -> Logbook:
        self.ledger.logbook = open_journal(self.parts, self.run_id, start)
        return self.ledger.logbook

    # ------------------------------------------------------------ after each step

    def after(
        self,
        step: Step,
        loss: torch.Tensor,
        rates: tuple[float, float],
        grad_norm: torch.Tensor | None,
    ) -> None:
        parts, done = self.parts, step.number + 1
        parts.average(step)
        parts.world.done = done
        if not step.skipped:
            self.meter.add(loss)
        self.samples.count(step.number)
        recovery.count(parts, step, self.ledger)
        if done % parts.run.log.every == 0 or done == step.total:
            self._record(step, rates, grad_norm)
        began = time.monotonic()
        better, left = self.keeper.at_step(done, rates[0], self.agreement.asked)
        self._record_clock += time.monotonic() - began
        agreed = self.agreement.at_boundary(
            save=parts.world.main and self.saving.due.by_clock(),
            streak=parts.guard.streak,
            written=self.saving.writer.flag(done),
        )
        self.saving.follow(agreed.written)
        streak = parts.guard.streak if parts.sync.replicated else agreed.streak
        if streak:
            self.saving.finish()
        scores = self.keeper.scores
        streak = recovery.check(parts, done, streak, scores, self.checkpoints, self.ledger)
        self._owed = self._owed or agreed.save or self.saving.due.at_step(done)
        signal = left or agreed.signal
        last = bool(signal) or done == step.total
        if (self._owed and not streak) or better or last:
            with self.watchdog.slowly("saving"):
                self.save(done, better=better, last=last)
        if signal and done < step.total:
            self.ledger.event("stopped", signal=signal, step=done)
            raise StoppedError(signal, done)
        if done < step.total:
            self._follow_members(done)
        self.watchdog.moved(done)
        if self.ledger.logbook is not None:
            self.ledger.logbook.progress(done)

    # ------------------------------------------------------------ members that come and go

    def _group(self) -> Group:
        assert isinstance(self.parts.world.control, Group)
        return self.parts.world.control

    def _follow_members(self, done: int) -> None:
        """Admit newcomers, and share the work among those that are there from the next step on."""
        parts = self.parts
        if isinstance(parts.world.control, Group):
            if parts.world.control.newcomers:
                self.saving.finish()
            parts.world.control.admit(
                lambda: {
                    "step": done,
                    "micro": parts.plan.micro,
                    "parts": parts.state_dict(),
                    "observer": self.state_dict(),
                }
            )
        if parts.world.generation != self._generation:
            parts.regroup()
            self._regrouped(done)

    def _regrouped(self, done: int) -> None:
        """Rank 0 writes the logs, whoever that is now."""
        world = self.parts.world
        self._generation = world.generation
        if world.main and self.ledger.logbook is None:
            self._logbook_of_main(done)
        elif not world.main and self.ledger.logbook is not None:
            self.ledger.logbook.close("continued by another worker")
            self.ledger.logbook = None
        members = " ".join(str(member.slot) for member in self._group().members)
        self.ledger.event("members", step=done, generation=world.generation, workers=members)

    def _record(
        self, step: Step, rates: tuple[float, float], grad_norm: torch.Tensor | None
    ) -> None:
        loss = self.meter.take(self.parts.world, Meter.RECORD)
        now, run = time.monotonic(), self.parts.run
        elapsed, self._record_clock = now - self._record_clock, now
        steps, self._recorded = step.number + 1 - self._recorded, step.number + 1
        waited, self._waited = self._waited, 0.0
        for straggler in self.watchdog.news():
            self.ledger.event("straggler", step=step.number + 1, **straggler)
        if self.ledger.logbook is None:
            return
        values = {
            "loss": loss,
            "lr": rates[0],
            "weight_decay": rates[1],
            "images_per_second": steps * run.batch.size / elapsed,
            "remaining_seconds": (step.total - step.number - 1) * elapsed / steps,
            "data_wait": min(1.0, waited / elapsed),
            **self.parts.sparsity.metrics(),
            **self.parts.sync.metrics(),
        }
        if grad_norm is not None:
            values["grad_norm"] = grad_norm.item()
        self.ledger.logbook.record(step.number + 1, step.epoch, values)

    # ------------------------------------------------------------ checkpoints

    def save(self, done: int, *, better: bool, last: bool) -> None:
        parts, began = self.parts, time.monotonic()
        self.samples.total(parts.world)
        self.ledger.gather()
        own: dict[str, Any] = {"random": random_state(), "meter": self.meter.state_dict()}
        own["streak"] = parts.guard.streak
        ranks = gather(parts.world, own) if parts.sync.replicated else [own]
        writes = parts.world.main or not parts.sync.replicated
        state = {
            "parts": parts.state_dict(),
            "observer": self.state_dict(),
            "ranks": ranks,
            "order": parts.place(done),
        }
        facts = {
            "config": parts.run.hash,
            **shape(parts),
            "finished": done == parts.plan.total_steps,
            "scores": self.keeper.scores,
        }
        best = self.keeper.scores if better else None
        self.saving.save(done, state if writes else None, facts=facts, best=best, last=last)
        self._owed = False
        self._record_clock += time.monotonic() - began

    def state_dict(self) -> dict[str, Any]:
        own = {"run_id": self.run_id, "samples": self.samples.state}
        return self.keeper.state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run_id = state["run_id"]
        self.keeper.load_state_dict(state)
        self.samples.load(state["samples"])
