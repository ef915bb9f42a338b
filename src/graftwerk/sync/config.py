"""Config of the sync axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from graftwerk.config import Choice

if TYPE_CHECKING:
    from graftwerk import axes


class Elastic(NamedTuple):
    """Of a group that outlives its members."""

    timeout: float
    """Seconds of silence after which a worker is given up."""
    restarts: int
    """How often a local worker is started again."""


class Sync(Choice):
    """How replicas agree."""

    default_kind = "allreduce"

    @property
    def elastic(self) -> Elastic | None:
        """How a group survives the death of workers; None: all of them must live."""
        return None

    def build(self, world: axes.World) -> axes.Sync:
        raise NotImplementedError


class Alone(Sync, kind="none"):
    """One process; more than one is refused, for they would train apart."""

    def build(self, world: axes.World) -> axes.Sync:
        from graftwerk.axes import Sync
        from graftwerk.errors import ConfigError

        if world.size > 1:
            raise ConfigError(
                [f"sync: 'none' would let {world.size} processes train apart; use sync=allreduce"]
            )
        return Sync()


class AllReduce(Sync, kind="allreduce"):
    """Gradients are averaged over all ranks (torch DistributedDataParallel)."""

    bucket_mb: int = Field(default=25, ge=1)
    find_unused: bool = False
    sync_batchnorm: bool = False

    def build(self, world: axes.World) -> axes.Sync:
        from graftwerk.sync.allreduce import AllReduce

        return AllReduce(world, self.bucket_mb, self.find_unused, self.sync_batchnorm)


class Gossip(Sync, kind="gossip"):
    """Replicas average their parameters with few peers at each step (docs/gossip.md)."""

    topology: str = "one_peer_exp"
    """Who averages with whom; `graftwerk topology` shows one. Or FILE.py:FUNCTION."""
    max_peers: int = Field(default=1, ge=1)
    """Peers in a step, for base_k."""
    by_node: bool = False
    """Workers of a machine average, and machines are what the topology connects."""
    node_gradients: bool = False
    """Workers of a machine average their gradients too, and so stay equal."""
    ranks_per_node: int | None = Field(default=None, ge=1)
    """Unset: as the launcher says."""
    order: Literal["combine_then_adapt", "adapt_then_combine"] = "combine_then_adapt"
    """Mix before the optimizer's step, while the network has a step's time; or after it."""
    payload: Literal["fp32", "bf16", "int8"] = "fp32"
    """fp32: parameters as they are. int8: differences to what was sent before."""
    bucket_mb: int = Field(default=4, ge=1)
    """Parameters are copied, encoded and sent in pieces of this size, one after the other."""
    global_every: int | None = Field(default=None, ge=1)
    """Every so many steps all workers average with all."""
    recalibrate: int = Field(default=0, ge=0)
    """Batches of each worker from which BatchNorm's statistics are taken anew for evaluation and
    export; 0: the average of all workers' statistics."""
    patience: float = Field(default=10.0, gt=0)
    """Seconds to wait for a peer that sends nothing; then both keep to themselves this step."""
    timeout: float = Field(default=10.0, gt=0)
    """Seconds of silence after which a worker is given up, and the others go on without it."""
    lead: int = Field(default=4, ge=1)
    """Steps that a worker may be ahead of the slowest one."""
    restarts: int = Field(default=3, ge=0)
    """How often `processes=N` starts each worker again after it was killed or crashed."""

    @property
    def elastic(self) -> Elastic:
        return Elastic(self.timeout, self.restarts)

    def build(self, world: axes.World) -> axes.Sync:
        from graftwerk.sync.gossip import Gossip

        return Gossip(world, self)
