"""The topology that a name stands for: one of graftwerk's, or a function of your own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graftwerk.config import nearest
from graftwerk.errors import ConfigError
from graftwerk.paths import frozen
from graftwerk.sync.topology import TOPOLOGIES, Edges, Topology, base_k, hierarchical

KEY = "sync.topology"
Matrices = Callable[[list[int]], Sequence[Any]]
"""nodes → the mixing matrices W of one period, each [n, n]; `nodes[i]` is the node of worker i."""


def find_topology(name: str, *, max_peers: int = 1, by_node: bool = False) -> Topology:
    """One of `TOPOLOGIES` by name, or ``FILE.py:FUNCTION`` (see `Matrices`).

    `max_peers` is the k of `base_k`. With `by_node` the workers of a node average among themselves
    in each step, and the topology connects the nodes. Raises `ConfigError` naming `sync.topology`.
    """
    file, colon, function = name.partition(":")
    known = name.replace("-", "_")
    if colon or file.endswith(".py"):
        topology = _from_file(Path(file), function)
    elif known == "base_k":
        topology = partial(base_k, k=max_peers)
    elif known in TOPOLOGIES:
        topology = TOPOLOGIES[known]
    else:
        raise ConfigError(
            [
                f"{KEY}: unknown topology {name!r}{nearest(known, TOPOLOGIES)}; there are: "
                f"{', '.join(TOPOLOGIES)}, and FILE.py:FUNCTION"
            ]
        )
    return hierarchical(topology) if by_node else topology


def _from_file(file: Path, function: str) -> Topology:
    spec = importlib.util.spec_from_file_location(file.stem, frozen(file))
    if spec is None or spec.loader is None or not file.exists():
        raise ConfigError([f"{KEY}: no such file {file}"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise ConfigError([f"{KEY}: name a function of {file}, as {file}:FUNCTION"])
    return custom(getattr(module, function), f"{file}:{function}")


def custom(matrices: Matrices, name: str = "custom") -> Topology:
    """`matrices` as a topology that refuses what isn't symmetric and doubly stochastic."""

    def topology(nodes: Sequence[int]) -> list[Edges]:
        try:
            steps = [np.asarray(w, dtype=np.float64) for w in matrices(list(nodes))]
        except (TypeError, ValueError) as error:
            raise ConfigError([f"{KEY}: {name} returned no matrices ({error})"]) from None
        if not steps:
            raise ConfigError([f"{KEY}: {name} returned no matrix for {len(nodes)} workers"])
        for step, w in enumerate(steps):
            problem = _problem(w, len(nodes))
            if problem:
                where = f"for {len(nodes)} workers at step {step}"
                raise ConfigError([f"{KEY}: {name} is not a topology {where}: {problem}"])
        return [_edges(w) for w in steps]

    return topology


def _problem(w: np.ndarray, n: int) -> str | None:
    """What makes `w` no mixing matrix, in words."""
    if w.shape != (n, n):
        return f"the matrix is {' × '.join(map(str, w.shape))} and should be {n} × {n}"
    if not np.isfinite(w).all() or (w < 0).any():
        return "a weight is negative or not finite"
    for axis, line in ((1, "row"), (0, "column")):
        sums = w.sum(axis)
        worst = int(np.abs(sums - 1).argmax())
        if abs(sums[worst] - 1) > 1e-9:
            return f"{line} {worst} sums to {sums[worst]:.6g} and should sum to 1"
    i, j = (int(index) for index in np.unravel_index(np.abs(w - w.T).argmax(), w.shape))
    if abs(w[i, j] - w[j, i]) > 1e-9:
        return (
            f"W[{i}, {j}] = {w[i, j]:.6g} but W[{j}, {i}] = {w[j, i]:.6g}; an exchange goes both "
            "ways with one weight, so that both ends can leave it out when one of them is late"
        )
    return None


def _edges(w: np.ndarray) -> Edges:
    pairs = zip(*np.nonzero(np.triu(w, 1)), strict=True)
    return {(int(i), int(j)): float(w[i, j]) for i, j in pairs}
