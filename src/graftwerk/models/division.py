"""A network's blocks shared out to modules, as numbers alone (Ni et al. 2023, arXiv 2212.04129).

Networks have stages of blocks: a ViT one, a ConvNeXt four. A division is written as the number of
blocks of each module: ``(3, 3, 3, 3)`` for a ViT of twelve. The numbers fill the stages in order:
``(3, 3, 9, 3)`` gives each stage of a ConvNeXt-T a module, ``(3, 3, 4, 5, 3)`` halves its third,
and ``((3, 3), 9, 3)`` joins its first two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field

from graftwerk.errors import ConfigError

Blocks = Annotated[int, Field(ge=1)]
Divide = Annotated[
    tuple[Blocks | Annotated[tuple[Blocks, ...], Field(min_length=1)], ...], Field(min_length=1)
]
"""As it is written: for each module its blocks, or those in each stage that it reaches into."""


class Piece(NamedTuple):
    """What a module has of one stage."""

    stage: int
    blocks: int


def numbers(divide: Divide) -> list[tuple[int, ...]]:
    """The written numbers of each module."""
    return [module if isinstance(module, tuple) else (module,) for module in divide]


def written(divide: Divide) -> str:
    """As one types it: ``[[3,3],9,3]``."""
    modules = [list(m) if isinstance(m, tuple) else m for m in divide]
    return str(modules).replace(" ", "")


def shape(divide: Divide) -> list[int]:
    """How many stages each module reaches into: what a network and its meta network share."""
    return [len(module) for module in numbers(divide)]


@dataclass(frozen=True)
class Division:
    """Modules in order, each of consecutive pieces."""

    modules: tuple[tuple[Piece, ...], ...]

    @classmethod
    def of(cls, divide: Divide, depths: Sequence[int], *, key: str) -> Division:
        """`divide` fills stages of `depths` blocks. Raises `ConfigError` naming `key`."""
        stage, used = 0, 0
        modules: list[tuple[Piece, ...]] = []
        for module in numbers(divide):
            pieces: list[Piece] = []
            for blocks in module:
                if stage < len(depths) and used == depths[stage]:
                    stage, used = stage + 1, 0
                if stage == len(depths) or used + blocks > depths[stage]:
                    raise ConfigError([_misfit(divide, depths, key)])
                pieces.append(Piece(stage, blocks))
                used += blocks
            modules.append(tuple(pieces))
        division = cls(tuple(modules))
        if division.depths != tuple(depths):
            raise ConfigError([_misfit(divide, depths, key)])
        return division

    def like(self, divide: Divide) -> Division:
        """Other numbers of blocks for the same pieces, as of a meta network."""
        return Division(
            tuple(
                tuple(
                    Piece(piece.stage, blocks) for piece, blocks in zip(pieces, module, strict=True)
                )
                for pieces, module in zip(self.modules, numbers(divide), strict=True)
            )
        )

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks of each stage of the whole network."""
        count: Counter[int] = Counter()
        for stage, blocks in (piece for module in self.modules for piece in module):
            count[stage] += blocks
        return tuple(count[stage] for stage in sorted(count))

    def owner(self, stage: int, block: int) -> int:
        """The module that block number `block` of `stage` belongs to."""
        before = 0
        for number, module in enumerate(self.modules):
            for piece in module:
                before += piece.blocks if piece.stage == stage else 0
                if piece.stage == stage and block < before:
                    return number
        raise IndexError(f"stage {stage} has no block {block}")

    def start(self, module: int, stage: int) -> int:
        """How many blocks of `stage` earlier modules have."""
        earlier = (piece for pieces in self.modules[:module] for piece in pieces)
        return sum(piece.blocks for piece in earlier if piece.stage == stage)


def hybrid(meta: Divide, divide: Divide, index: int) -> Divide:
    """The meta network with module `index` of the network itself in it."""
    return (*meta[:index], divide[index], *meta[index + 1 :])


def _misfit(divide: Divide, depths: Sequence[int], key: str) -> str:
    given, total = sum(map(sum, numbers(divide))), sum(depths)
    network = (
        f"{total} blocks"
        if len(depths) == 1
        else f"{total} blocks in {len(depths)} stages of {', '.join(map(str, depths))}"
    )
    if given != total:
        what = f"are {given} blocks in {len(divide)} modules"
    else:
        what = "crosses the end of a stage; write what a module has of each stage, as [[3,3],9,3]"
    return f"{key}: {written(divide)} {what}, and the network has {network}"
