"""A fixed mask on the weights: ``w <- w a`` after every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graftwerk import axes
from graftwerk.axes import Batch, Objective, Step, Sync
from graftwerk.errors import CheckpointError, ConfigError
from graftwerk.sparsity import flops
from graftwerk.sparsity.compact import Compact, check, elementwise
from graftwerk.sparsity.config import Static
from graftwerk.sparsity.execution import (
    Execution,
    alone,
    check_semi_structured,
    check_values_alone,
    executions,
)
from graftwerk.sparsity.initialise import initialise
from graftwerk.sparsity.masks import MaskedWeight, apply, maskable
from graftwerk.sparsity.structure import structure

SAME = ("density", "structure", "init", "execution")
"""Keys of the config that a resumed run must share with its checkpoint."""
FEW = 0.5
"""Up to this density, vectors of active weights take less time and memory than dense tensors."""


class StaticSparsity(axes.Sparsity):
    """The active weights are chosen before the first step, and stay."""

    same = SAME

    def __init__(self, config: Static) -> None:
        self.config = config
        self.execution = config.execution or "masked"
        self.layers: list[MaskedWeight] = []
        self.positions: dict[str, int] = {}
        """Places where each layer of the network applies its weights to an image."""
        self.compact: list[Compact] = []
        """What the optimizer sees, unless execution is "masked"."""
        self.executions: list[Execution] = []
        self._moved = self._whole = False
        self._reads_weights = False
        """In every step, beside the products."""

    @property
    def first_density(self) -> float:
        return self.config.density

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
        self.bind(objective, optimizer, sync, seed=seed, total_steps=total_steps)
        self.positions = flops.positions(objective, batch)
        config = self.config
        masks = initialise(self.layers, config, self.first_density, objective, sync, batch, seed)
        for layer, mask in zip(self.layers, masks, strict=True):
            layer.set(mask)
            if config.scale_init:
                with torch.no_grad():
                    layer.weight.div_((layer.active / layer.size) ** 0.5)
        apply(self.layers)
        self.execution = config.execution or self._usual_execution()
        self._execute({}, rows=len(batch.images_nchw))

    def _usual_execution(self) -> str:
        """`compact` where that is faster and trains the same network. Under training's autocast."""
        weight = self.layers[0].weight
        scaled = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.half
        faster = weight.is_cpu and self.first_density <= FEW and elementwise(self._optimizer)
        more = scaled or self.config.needs_all_state
        return "compact" if faster and not more else "masked"

    def _execute(self, forms: dict[str, str], rows: int = 0) -> None:
        """Hand the optimizer compact weights, and give linear layers their form.

        `forms` are those of a checkpoint, "dense" where this device has no such form any more; what
        is not there is measured on `rows` images.
        """
        wanted = self.execution
        if wanted == "auto" and not elementwise(self._optimizer):
            wanted = "masked"
        if wanted == "masked":
            for layer in self.layers:
                layer.factor = layer.mask.to(layer.weight.dtype)
            return
        check(self._optimizer, wanted)
        self.compact = [Compact(layer, self._optimizer) for layer in self.layers]
        if wanted != "compact":
            self._choose_forms(wanted, forms, rows)
        self._see_all_gradients(False)

    def _choose_forms(self, wanted: str, forms: dict[str, str], rows: int) -> None:
        self.executions = executions(self._objective.net, self.compact, self._sync, self.positions)
        if wanted == "semi_structured":
            check_semi_structured(self.executions)
        elif wanted != "auto":
            check_values_alone(wanted, self.executions, self._sync)
        for execution in self.executions:
            name = execution.compact.layer.name
            form = forms.get(name, wanted)
            if form == "auto":
                form = execution.fastest(rows * self.positions.get(name, 1))
            execution.use(form if form in execution.forms else "dense")

    def bind(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        sync: Sync,
        *,
        seed: int,
        total_steps: int,
    ) -> None:
        self._objective, self._optimizer, self._sync = objective, optimizer, sync
        self._seed, self._total_steps = seed, total_steps
        config, pattern = self.config, structure(self.config.structure)
        modules = maskable(objective.net, config.include, config.exclude)
        self.layers = [
            MaskedWeight(name, _weight(module), pattern) for name, module in modules.items()
        ]
        problems = [
            f"sparsity.structure: {config.structure} does not fit layer {layer.name!r} ({problem});"
            " leave it out with sparsity.exclude"
            for layer in self.layers
            if (problem := pattern.problem(layer.shape)) is not None
        ]
        if problems:
            raise ConfigError(problems)

    def before_step(self, step: Step) -> None:
        """Mixing with replicas brings back weights that were pruned since they were sent."""
        del step
        if not self._sync.replicated:
            apply(self.layers)
        for compact in self.compact:
            compact.gather(weights=not self._sync.replicated)

    def after_step(self, step: Step) -> None:
        del step
        self._mask()
        self._release()

    def _mask(self) -> None:
        """The weights that exist are as the optimizer left them, the others zero."""
        if not self.compact:
            apply(self.layers)
        for compact in self.compact:
            compact.scatter()

    def _see_all_gradients(self, whole: bool) -> None:
        """In the next step; otherwise those of weights that exist are enough."""
        self._whole = whole
        for execution in self.executions:
            execution.see(whole=whole, weight=self._reads_weights)
        for compact in self.compact:
            compact.frees_gradients = not whole and alone(self._sync)

    def _release(self) -> None:
        for compact in self.compact:
            compact.release()

    def after_average(self, average: nn.Module) -> None:
        """Both summands are masked alike, unless masks moved."""
        if self._moved:
            self.mask_(average)
            self._moved = False

    @torch.no_grad()
    def mask_(self, net: nn.Module) -> None:
        """Mask a network of the same layers."""
        for layer in self.layers:
            _weight(net.get_submodule(layer.name)).mul_(layer.mask)

    @property
    def density(self) -> float:
        return sum(layer.active for layer in self.layers) / sum(layer.size for layer in self.layers)

    def metrics(self) -> dict[str, float]:
        """Densities of the masked weights, and the cost of an image relative to dense."""
        net = self._objective.net
        return {
            "density": self.density,
            "inference_flops": flops.relative(net, self.layers, self.positions),
            **{f"density/{layer.name}": layer.active / layer.size for layer in self.layers},
        }

    def notes(self) -> list[str]:
        """The form of each layer where it was chosen now, and by which times."""
        if self.config.execution == "auto" and not self.compact:
            return [f"all layers: masked ({type(self._optimizer).__name__} needs whole matrices)"]
        return [str(execution) for execution in self.executions if execution.times]

    def state_dict(self) -> dict[str, Any]:
        return {
            "masks": {layer.name: layer.mask for layer in self.layers},
            "positions": self.positions,
            "forms": {e.compact.layer.name: e.form for e in self.executions},
            "config": self._settings(),
        }

    def _settings(self) -> dict[str, Any]:
        return {key: getattr(self.config, key) for key in self.same} | {"execution": self.execution}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError where the checkpoint was made with other settings."""
        saved: dict[str, Any] = state.get("config", {})
        masks: dict[str, Tensor] = state.get("masks", {})
        if self.config.execution is None:
            self.execution = saved.get("execution", self.execution)
        problems = [
            f"sparsity.{key}: the checkpoint was made with {saved.get(key)!r}, not "
            f"{value!r}; go on with that, or start anew with resume=never"
            for key, value in self._settings().items()
            if saved.get(key) != value
        ]
        if not problems and masks.keys() != {layer.name for layer in self.layers}:
            problems = ["sparsity: the checkpoint masks other layers than this run"]
        if problems:
            raise CheckpointError("\n".join(problems))
        self.positions = state["positions"]
        for layer in self.layers:
            layer.set(masks[layer.name])
        self._execute(dict(state["forms"]))


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight
