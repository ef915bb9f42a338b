"""Config of the sparsity axis."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import override

from graftwerk.config import Choice

if TYPE_CHECKING:
    from graftwerk import axes

Prune = Literal[
    "magnitude",
    "set",
    "snip",
    "mest",
    "sensitivity",
    "reciprocal_sensitivity",
    "grad_step",
    "taylor",
    "snip_plus",
    "snip_half",
    "running_magnitude",
    "running_snip",
    "grasp",
    "random",
    "threshold",
]
AFTER_STEP = ("magnitude", "set", "random", "running_magnitude", "threshold")
"""Criteria that need no gradient, and are published with the update after the step."""
RANK_OF_LAYER = ("set", "snip_plus", "snip_half", "running_magnitude", "running_snip", "random")
"""Criteria whose scores mean nothing beside those of another layer."""


def _structure(name: str) -> str:
    match = re.fullmatch(r"unstructured|fan_in|(\d+):(\d+)|block(\d+)", name)
    pattern = match is not None and (match[1] is None or 0 < int(match[1]) < int(match[2]))
    if match is None or not pattern or match[3] in ("0", "1"):
        raise ValueError(
            "should be 'unstructured', 'fan_in', N:M such as '2:4', or a block such as 'block16' "
            f"(got {name!r})"
        )
    return name


class Sparsity(Choice):
    """Which weights exist."""

    default_kind = "dense"

    def build(self) -> axes.Sparsity:
        raise NotImplementedError


class Dense(Sparsity, kind="dense"):
    """Every weight exists."""

    def build(self) -> axes.Sparsity:
        from graftwerk.axes import Sparsity

        return Sparsity()


class Static(Sparsity, kind="static"):
    """The share `density` of the weights of convolutions and linear layers, chosen once."""

    density: float = Field(default=0.1, gt=0, le=1)
    init: Literal["erk", "uniform", "uniform_plus", "balanced", "magnitude", "snip", "grasp"] = (
        "erk"
    )
    """How many weights a layer keeps; the last three score the weights of all layers together."""
    positions: Literal["scored", "random"] = "scored"
    """`random`: from scores only the density of each layer is taken, as the paper's code does."""
    structure: Annotated[str, AfterValidator(_structure)] = "unstructured"
    """`unstructured`; `2:4` (any N:M); `fan_in`; `block16` (any side)."""
    include: tuple[str, ...] = ("*",)
    """Patterns of the names of layers that become sparse."""
    exclude: tuple[str, ...] = ()
    temperature: float = Field(default=200.0, gt=0)
    """Divides the logits where GraSP scores."""
    execution: Literal["masked", "compact", "csr", "bsr", "semi_structured", "auto"] | None = None
    """`masked`: zeros in dense tensors; `compact`: so, but the optimizer sees only weights that
    exist; `csr`, `bsr`, `semi_structured` (2:4 on NVIDIA GPUs): linear layers compute on sparse
    matrices; `auto`: on those, where that is faster. Unset: `compact` where it is known to be
    faster (on CPUs, at densities to ½) and nothing asks for more, else `masked`."""
    scale_init: bool = False
    """Divide first weights by √density of their layer: Kaiming's fan-in as it is after masking."""

    @model_validator(mode="after")
    def _pattern_has_a_density(self) -> Static:
        kept, _, of = self.structure.partition(":")
        if of and abs(self.density - int(kept) / int(of)) > 1e-9:
            wanted = f"{int(kept) / int(of):g}"
            raise ValueError(f"structure {self.structure} keeps {wanted}: set density={wanted}")
        if self.execution == "bsr" and not self.structure.startswith("block"):
            raise ValueError("execution=bsr multiplies blocks: set structure, such as block16")
        if self.execution == "semi_structured" and self.structure != "2:4":
            raise ValueError("execution=semi_structured is for structure=2:4 (with density=0.5)")
        return self

    @property
    def needs_all_state(self) -> bool:
        """Whether optimizer state of inactive weights counts, as only `masked` keeps it."""
        return False

    def build(self) -> axes.Sparsity:
        from graftwerk.sparsity.static import StaticSparsity

        return StaticSparsity(self)


class Dst(Static, kind="dst"):
    """Every so many steps the least useful weights go and as many others come."""

    prune: Prune = "magnitude"
    grow: Literal["random", "gradient", "momentum", "none"] = "gradient"
    every: int = Field(default=100, ge=1)
    """Steps between updates of the masks."""
    rate: float = Field(default=0.5, ge=0, le=1)
    """Share of the active weights that an update prunes, at the start."""
    rate_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    stop_at: float = Field(default=1.0, ge=0, le=1)
    """Share of the run after which masks stay."""
    update: Literal["auto", "before_step", "after_step"] = "auto"
    """When masks change; auto: before the optimizer's step where the criterion needs gradients."""
    scope: Literal["layer", "global"] = "layer"
    """Whether weights are ranked within their layer or among all."""
    redistribute: Literal["none", "magnitude", "gradient", "momentum", "global"] = "none"
    """Where weights regrow: where they were lost, in proportion to the mean |w|, |g| or |momentum|
    of the weights that are left, or where growth scores are highest among all layers."""
    fresh: bool = True
    """Grown weights start at zero with fresh optimizer state. False, as published: one that was
    pruned in the same update keeps its value, and the optimizer remembers."""
    gamma: float = Field(default=1.0, ge=0)
    """Of `mest` and `grad_step`."""
    beta: float = Field(default=0.9, ge=0, lt=1)
    """Of the running criteria: ``s <- β s + (1 − β) score`` after each step."""
    threshold: float = Field(default=1e-3, gt=0)
    """Of `prune=threshold`: active weights nearer zero go, however many."""
    normalize: Literal["none", "layer", "output", "input"] = "none"
    """Divide scores by their sum (or largest) over the layer, each output or each input."""
    normalize_by: Literal["sum", "max"] = "sum"
    adjust: Literal["none", "layer", "output", "input"] = "none"
    """After pruning, scale what is left to the norm that was there before."""
    start_density: float | None = Field(default=None, gt=0, le=1)
    """If set, density falls from here to `density` along a cubic curve."""
    sparsify_from: float = Field(default=0.0, ge=0, lt=1)
    sparsify_until: float = Field(default=0.5, gt=0, le=1)
    """Shares of the run between which density falls."""
    compare: tuple[Prune, ...] = ()
    """Criteria whose choices are compared in each update (Jaccard), beside the one in use."""

    @model_validator(mode="after")
    def _combinations(self) -> Dst:
        balanced = self.structure == "fan_in" or ":" in self.structure
        if self.scope == "global" and self.prune in RANK_OF_LAYER:
            raise ValueError(f"prune={self.prune} ranks within a layer: set scope=layer")
        if self.normalize != "none" and self.prune == "set":
            raise ValueError("normalize has no meaning for prune=set: set normalize=none")
        if balanced and (self.scope, self.redistribute) != ("layer", "none"):
            raise ValueError(
                f"structure {self.structure} fixes every row's count: set scope=layer and "
                "redistribute=none"
            )
        if balanced and (self.start_density is not None or self.grow == "none"):
            raise ValueError(f"structure {self.structure} can't change the density over time")
        if self.execution not in (None, "masked"):
            if self.needs_all_state:
                raise ValueError(
                    f"execution={self.execution} keeps no momentum of weights that don't exist: "
                    "set execution=masked"
                )
            if self.prune == "running_snip" and self.execution != "compact":
                raise ValueError("prune=running_snip needs all gradients: set execution=compact")
        if self.grow == "none" and self.start_density is None:
            raise ValueError("grow=none needs start_density: without it weights would run out")
        if self.start_density is not None:
            if self.start_density < self.density:
                raise ValueError("start_density should be at least density")
            if not self.sparsify_from < self.sparsify_until <= self.stop_at:
                raise ValueError("needs sparsify_from < sparsify_until <= stop_at")
            if self.redistribute == "none" and self.scope == "layer" and self.init in SCORED:
                raise ValueError(f"start_density with init={self.init} needs scope=global")
        return self

    @property
    @override
    def needs_all_state(self) -> bool:
        return "momentum" in (self.grow, self.redistribute) or not self.fresh

    @property
    def before_step(self) -> bool:
        if self.update == "auto":
            return self.prune not in AFTER_STEP
        return self.update == "before_step"

    def build(self) -> axes.Sparsity:
        from graftwerk.sparsity.dst import DynamicSparsity

        return DynamicSparsity(self)


SCORED = ("magnitude", "snip", "grasp")


class Gmp(Dst, kind="gmp"):
    """Gradual magnitude pruning (Zhu and Gupta 2017): from dense to sparse, nothing grows."""

    grow: Literal["random", "gradient", "momentum", "none"] = "none"
    start_density: float | None = Field(default=1.0, gt=0, le=1)
    sparsify_until: float = Field(default=0.75, gt=0, le=1)


class GraNet(Dst, kind="granet"):
    """GraNet (Liu et al. 2021): pruned gradually over all layers, and regrown by gradient."""

    scope: Literal["layer", "global"] = "global"
    redistribute: Literal["none", "magnitude", "gradient", "momentum", "global"] = "global"
    start_density: float | None = Field(default=0.5, gt=0, le=1)
    sparsify_until: float = Field(default=0.5, gt=0, le=1)
