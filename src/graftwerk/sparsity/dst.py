"""Dynamic sparse training: every Δ steps weights are pruned, and as many others grown."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from graftwerk.axes import Batch, Objective, Step, Sync
from graftwerk.errors import GraftwerkError
from graftwerk.sparsity import flops, state, update
from graftwerk.sparsity.allocation import ALLOCATIONS
from graftwerk.sparsity.config import Dst
from graftwerk.sparsity.masks import MaskedWeight, apply
from graftwerk.sparsity.schedules import RATES, cubic_density
from graftwerk.sparsity.scoring import Scorer
from graftwerk.sparsity.select import bits, number, ones
from graftwerk.sparsity.static import SAME, StaticSparsity


class DynamicSparsity(StaticSparsity):
    """One update is `_choose` (which units go and come) and `_move` (masks, weights, state)."""

    config: Dst
    same = (*SAME, "prune", "grow", "every")

    def __init__(self, config: Dst) -> None:
        super().__init__(config)
        self.config = config
        self._reads_weights = config.prune.startswith("running")
        self.explored: list[Tensor] = []
        """A bit for each weight, 1 if it has ever been active."""
        self.exploration = 0.0
        """Rs of ITOP (Liu et al. 2021): the share of the weights that have ever been active."""
        self._scores: dict[str, float] = {}
        self._overlaps: dict[str, float] = {}
        """Of the newest update by pair of criteria and layer, until they are logged."""
        self._postponed = False

    @property
    def first_density(self) -> float:
        return self.config.start_density or self.config.density

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
        super().attach(objective, optimizer, sync, batch, seed=seed, total_steps=total_steps)
        self.explored = [bits(layer.mask) for layer in self.layers]
        self._count_explored()
        self._see_all_gradients(self.config.every == 1)

    def bind(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        sync: Sync,
        *,
        seed: int,
        total_steps: int,
    ) -> None:
        super().bind(objective, optimizer, sync, seed=seed, total_steps=total_steps)
        self._scorer = Scorer(self.config, self.layers, objective, optimizer, sync, seed)

    # ------------------------------------------------------------ hooks

    def before_step(self, step: Step) -> None:
        super().before_step(step)
        if not step.skipped:
            self._scorer.watch()
        if self.config.before_step and self._due(step):
            self.update(step)

    def after_step(self, step: Step) -> None:
        self._mask()
        if step.number == 0:
            state.check_momentum(self.config, self._optimizer, self.layers[0].weight)
        if not self.config.before_step and self._due(step):
            self.update(step)
        self._release()
        self._see_all_gradients(self._due(step, ahead=1))

    def _see_all_gradients(self, whole: bool) -> None:
        super()._see_all_gradients(whole or self.config.prune == "running_snip")

    def _due(self, step: Step, ahead: int = 0) -> bool:
        t = step.number + 1 + ahead
        return (t % self.config.every == 0 or self._postponed) and t < (
            self.config.stop_at * self._total_steps
        )

    # ------------------------------------------------------------ an update

    @torch.no_grad()
    def update(self, step: Step) -> None:
        """Prune, grow, mask. Gradients that are not finite put it off by a step.

        A call of all ranks together. Raises GraftwerkError where weights are not finite.
        """
        self._postponed = not self._usable(step)
        if self._postponed:
            return
        t = step.number + 1
        self._scorer.begin(t, step.batch)
        active = [layer.units() for layer in self.layers]
        removed, grown = self._choose(t, active)
        self._scores["prune_rate"] = self.rate(t)
        self._compare(t, active, removed)
        for i, (layer, was, gone, new) in enumerate(
            zip(self.layers, active, removed, grown, strict=True)
        ):
            self._move(layer, was & ~gone, new)
            self.explored[i] |= bits(layer.mask)
            if self.compact:
                self.compact[i].rebuild(layer.expand(new))
        for execution in self.executions:
            execution.rebuild()
        self._count_explored()
        if not self.compact:
            apply(self.layers)
        self._scorer.end()
        self._moved = True

    def _choose(self, t: int, active: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """(units that go, units that come); a unit can do both."""
        removed = self._prune(self.config.prune, t, active)
        free = [~was | gone for was, gone in zip(active, removed, strict=True)]
        if self.config.grow == "none":
            return removed, [torch.zeros_like(f) for f in free]
        scores = self._scorer.growth()
        if self.layers[0].structure.balanced:
            return removed, update.grow_groups(scores, free, removed)
        lost = [number(gone) for gone in removed]
        left = [number(was) - gone for was, gone in zip(active, lost, strict=True)]
        room = [number(f) for f in free]
        targets = self._targets(t, active)
        total = max(0, sum(targets) - sum(left))
        if self.config.redistribute == "global":
            return removed, update.grow_globally(scores, free, total)
        if self.config.redistribute != "none":
            survivors = [was & ~gone for was, gone in zip(active, removed, strict=True)]
            shares = self._scorer.importance(survivors)
            counts = update.redistribute(total, shares, lost, room)
        elif self.config.scope == "global":
            counts = update.redistribute(total, [], lost, room)
        else:
            counts = [max(0, target - has) for target, has in zip(targets, left, strict=True)]
        return removed, update.grow_layers(scores, free, counts)

    def _prune(self, criterion: str, t: int, active: list[Tensor]) -> list[Tensor]:
        scores = self._scorer.worth(criterion)
        counts = [number(was) for was in active]
        targets, rate = self._targets(t, active), self.rate(t)
        if criterion == "threshold":
            below = [
                number(s[was] < self.config.threshold)
                for s, was in zip(scores, active, strict=True)
            ]
            return update.prune_layers(
                scores, active, [min(k, n - 1) for k, n in zip(below, counts, strict=True)]
            )
        if self.config.scope == "global":
            count = max(update.prune_count(rate, sum(counts)), sum(counts) - sum(targets))
            return update.prune_globally(scores, active, count)
        goes = [
            max(update.prune_count(rate, has), has - target)
            for has, target in zip(counts, targets, strict=True)
        ]
        return update.prune_layers(scores, active, goes)

    def rate(self, t: int) -> float:
        """The share of the active weights that an update after t steps prunes."""
        if self.config.grow == "none":
            return 0.0
        return RATES[self.config.rate_schedule](t, self._total_steps, self.config.rate)

    def _targets(self, t: int, active: Sequence[Tensor]) -> list[int]:
        """Units of each layer after the update; their sum counts where densities may move."""
        config = self.config
        if config.start_density is None:
            return [number(was) for was in active]
        begin, end = (
            round(s * self._total_steps) for s in (config.sparsify_from, config.sparsify_until)
        )
        density = cubic_density(t, begin, end, config.start_density, config.density)
        allocate = ALLOCATIONS.get(config.init, ALLOCATIONS["uniform"])
        densities = allocate([layer.shape for layer in self.layers], density)
        return [max(1, round(d * a.numel())) for d, a in zip(densities, active, strict=True)]

    def _move(self, layer: MaskedWeight, survivors: Tensor, grown: Tensor) -> None:
        """New masks; what has grown starts at zero, where `fresh`."""
        came = layer.expand(grown)
        if self.config.adjust != "none":
            state.adjust(layer, layer.expand(survivors), self.config.adjust)
        if self.config.fresh:
            state.zero(layer.weight, came)
            state.reset(self._optimizer, layer.weight, came)
        layer.set(layer.expand(survivors | grown))

    def _compare(self, t: int, active: list[Tensor], removed: list[Tensor]) -> None:
        """What other criteria would prune from the same state, pooled and layer by layer."""
        choices = {self.config.prune: removed}
        choices |= {name: self._prune(name, t, active) for name in self.config.compare}
        self._overlaps = {}
        for one, other in itertools.combinations(choices, 2):
            pair, of_one, of_other = f"jaccard/{one}-{other}", choices[one], choices[other]
            self._scores[pair] = update.jaccard(of_one, of_other)
            for layer, p, q in zip(self.layers, of_one, of_other, strict=True):
                self._overlaps[f"{pair}/{layer.name}"] = update.jaccard([p], [q])

    def _usable(self, step: Step) -> bool:
        """Whether no rank left the step out."""
        weights = torch.stack([layer.weight.sum() for layer in self.layers])
        grads = torch.stack([layer.grad.sum() for layer in self.layers])
        unusable = (~grads.isfinite()).any() | step.skipped
        bad = torch.stack([(~weights.isfinite()).any(), unusable]).float()
        weights_bad, grads_bad = self._sync.mean_(bad).tolist()
        if weights_bad > 0:
            raise GraftwerkError(
                f"sparsity: weights are no longer finite in step {step.number + 1}, so none can be "
                "ranked; lower optim.lr or set optim.clip (the last checkpoint is intact)"
            )
        return grads_bad == 0

    # ------------------------------------------------------------ what is logged and saved

    def _count_explored(self) -> None:
        ever = sum(ones(explored) for explored in self.explored)
        self.exploration = ever / sum(layer.size for layer in self.layers)

    def metrics(self) -> dict[str, float]:
        """Overlaps by layer are many, and handed out once."""
        overlaps, self._overlaps = self._overlaps, {}
        masked, dense = flops.per_image(self._objective.net, self.layers, self.positions)
        every = self.config.every if self.config.grow in ("gradient", "momentum") else None
        cost = flops.training(masked, dense, every) / (3 * dense) if dense else 1.0
        return {
            **super().metrics(),
            "training_flops": cost,
            "exploration": self.exploration,
            **self._scores,
            **overlaps,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "explored": self.explored,
            "scores": self._scores,
            "overlaps": self._overlaps,
            "postponed": self._postponed,
            "whole": self._whole,
            "running": self._scorer.running,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.explored = [explored.cpu() for explored in state["explored"]]
        self._count_explored()
        self._scores, self._overlaps = dict(state["scores"]), dict(state["overlaps"])
        self._postponed = state["postponed"]
        self._see_all_gradients(state["whole"])
        for running, saved in zip(self._scorer.running, state["running"], strict=True):
            running.copy_(saved)
