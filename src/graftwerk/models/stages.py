"""Where the blocks of a network are, and its tensors divided into modules and joined again.

The stem belongs to the first module, the final norm and the head to the last, and what a stage does
before its first block (downsampling) to the module with that block. Within a module blocks are
counted from its own first one, as in the published checkpoints.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from timm.layers.drop import DropPath
from torch import Tensor, nn

from graftwerk.errors import ConfigError
from graftwerk.models.division import Division

State = dict[str, Tensor]
T = TypeVar("T")
Pattern = re.Pattern[str]

STAGES = "model_stages"
"""The key of the modules in published checkpoints."""
VIT = re.compile(r"^blocks\.(\d+)")
"""Their networks are all ViTs."""


class Place(NamedTuple):
    """The stage and the block of a name, both from 0."""

    stage: int
    block: int


STEM, TAIL = Place(-1, 0), Place(-2, 0)
"""Before and after all stages."""


class Layout:
    """The places of names in networks of one family, whatever their depths.

    `patterns` match up to a block's number, which is their last group; a group before it is the
    stage's. `names` are those of one such network, in the order in which it computes.
    """

    def __init__(self, patterns: Sequence[Pattern], names: Iterable[str]) -> None:
        names = list(names)
        self._patterns = patterns
        found = [numbers for name in names if (numbers := self._numbers(name))]
        self._stages = sorted({stage for stage, _ in found})
        self._first = min((block for _, block in found), default=0)
        self._others = self._between(names)
        self.depths = self.depths_of(names)

    def place(self, name: str) -> Place:
        """A name that is neither of a block nor known lies in the tail."""
        numbers = self._numbers(name)
        if numbers is None:
            return self._others.get(name, TAIL)
        return Place(self._stages.index(numbers[0]), numbers[1] - self._first)

    def is_block(self, name: str) -> bool:
        """Whether `name` is a block itself, not something in one."""
        match = self._match(name)
        return match is not None and match.end() == len(name)

    def depths_of(self, names: Iterable[str]) -> tuple[int, ...]:
        """Blocks of each stage of the network or module with these names."""
        depths: Counter[int] = Counter()
        for name in names:
            if self._match(name):
                stage, block = self.place(name)
                depths[stage] = max(depths[stage], block + 1)
        return tuple(depths[stage] for stage in range(len(self._stages)))

    def owner(self, name: str, division: Division) -> int:
        """The number of the module that has `name`."""
        place = self.place(name)
        if place == STEM:
            return 0
        return len(division.modules) - 1 if place == TAIL else division.owner(*place)

    def split(self, state: Mapping[str, T], division: Division) -> list[dict[str, T]]:
        """The tensors of each module, under names of its own."""
        modules: list[dict[str, T]] = [{} for _ in division.modules]
        for name, value in state.items():
            owner = self.owner(name, division)
            before = division.start(owner, self.place(name).stage)
            modules[owner][self._moved(name, -before)] = value
        return modules

    def join(self, modules: Sequence[Mapping[str, T]]) -> dict[str, T]:
        """The network of these modules: the inverse of `split`."""
        state: dict[str, T] = {}
        before: Counter[int] = Counter()
        for module in modules:
            for name, value in module.items():
                state[self._moved(name, before[self.place(name).stage])] = value
            before.update(dict(enumerate(self.depths_of(module))))
        return state

    def _match(self, name: str) -> re.Match[str] | None:
        found = (pattern.match(name) for pattern in self._patterns)
        return next((match for match in found if match), None)

    def _numbers(self, name: str) -> tuple[int, int] | None:
        """The written numbers of stage and block."""
        match = self._match(name)
        if match is None:
            return None
        numbers = [int(group) for group in match.groups()]
        return (numbers[0] if len(numbers) > 1 else 0), numbers[-1]

    def _moved(self, name: str, by: int) -> str:
        match = self._match(name)
        if match is None:
            return name
        begin, end = match.span(match.re.groups)
        return f"{name[:begin]}{int(name[begin:end]) + by}{name[end:]}"

    def _between(self, names: Sequence[str]) -> dict[str, Place]:
        """The places of names that are of no block: those of blocks beside them."""
        places: dict[str, Place] = {}
        after = TAIL
        for name in reversed(names):
            after = self.place(name) if self._match(name) else places.setdefault(name, after)
        before, stage = STEM, None
        for name in names:
            match = self._match(name)
            if match is not None:
                before, stage = self.place(name), _stage(match)
            elif before == STEM or (stage is not None and name.startswith(stage)):
                places[name] = before
        return places


def _stage(match: re.Match[str]) -> str | None:
    """What every name in the match's stage begins with, in a network that has several."""
    return f"{match.string[: match.end(1)]}." if match.re.groups > 1 else None


def layout(net: nn.Module) -> Layout:
    """Of `net` as timm describes it, or `model.blocks` in its place.

    Raises `ConfigError` naming `model.blocks` where no block is found.
    """
    return Layout(block_patterns(net), net.state_dict())


def block_patterns(net: nn.Module) -> list[Pattern]:
    """Of timm's groups those that count blocks: the others have a fixed place beside them."""
    blocks: Any = []
    if hasattr(net, "group_matcher"):
        blocks = cast(Any, net).group_matcher(coarse=False)["blocks"]
    listed = [(blocks, None)] if isinstance(blocks, str) else blocks
    patterns = [re.compile(pattern) for pattern, place in listed if place is None]
    if not any(pattern.match(name) for pattern in patterns for name in net.state_dict()):
        names = ", ".join(list(net.state_dict())[:3])
        raise ConfigError(
            [
                "model.blocks: should say where the blocks of "
                rf"{type(net).__name__} are, as ^stages\.(\d+)\.(\d+) (stage, block) or "
                rf"^blocks\.(\d+) does; its tensors are {names}, …"
            ]
        )
    return patterns


def cut(net: nn.Module, depths: Sequence[int], drop_path: float | None) -> None:
    """Leave the first `depths` blocks of each stage, in place.

    Rates of drop path then grow evenly over the blocks that are left, to `drop_path`.
    """
    places = layout(net)
    blocks = [name for name, _ in net.named_modules() if places.is_block(name)]
    kept = [name for name in blocks if places.place(name).block < depths[places.place(name).stage]]
    for name in set(blocks) - set(kept):
        parent, _, leaf = name.rpartition(".")
        delattr(net.get_submodule(parent), leaf)
    for number, name in enumerate(kept):
        for module in net.get_submodule(name).modules():
            if isinstance(module, DropPath) and drop_path is not None:
                module.drop_prob = drop_path * number / max(1, len(kept) - 1)
