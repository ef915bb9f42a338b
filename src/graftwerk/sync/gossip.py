"""Replicas that average with few peers at each step, instead of all with all.

Combine, then adapt (Wang et al., ICLR 2025, arXiv 2410.11998):

    x_{t+1} = W_t x_t − lr · u(g(x_t))

The gradient is taken at the local model and applied to the mixed one. A worker sends x_t when it
has it, and needs those of its peers only after the next backward pass. Adapt, then combine:
``x_{t+1} = W_t (x_t − lr · u(g(x_t)))`` waits for the exchange.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graftwerk import axes
from graftwerk.axes import Objective, World
from graftwerk.elastic.group import Group
from graftwerk.sync import payload
from graftwerk.sync.custom import find_topology
from graftwerk.sync.exchange import GRADIENTS, PARAMETERS, Exchanges
from graftwerk.sync.node_gradients import NodeGradients
from graftwerk.sync.replicas import (
    add_,
    average_,
    average_finite_,
    buckets,
    check_same,
    copy_done,
    flattened,
    is_finite,
)
from graftwerk.sync.topology import schedule

if TYPE_CHECKING:
    from graftwerk.sync.config import Gossip as Config


class Gossip(axes.Sync):
    replicated = False

    def __init__(self, world: World, config: Config) -> None:
        self._world = world
        self._config = config
        self._topology = find_topology(
            config.topology, max_peers=config.max_peers, by_node=config.by_node
        )
        self._step = 0
        """The number of the next mixing."""
        self._resumed = False
        self._edges: dict[int, payload.Payload] = {}
        """By slot of the peer."""
        self._weights: dict[int, tuple[int, float]] = {}
        """Of the exchange under way: slot → (uid, weight)."""
        self._generation = -1
        self._uids: dict[int, int] = {}
        """Of the members that the topology is for, by slot."""
        self._flats: list[Tensor] = []
        self._self_loops = 0
        self._facts: dict[str, float] = {}
        self._withholds = False
        self._withheld: str | None = None

    # ------------------------------------------------------------ the loop's hooks

    def wrap(self, objective: Objective) -> nn.Module:
        self._net = objective.net
        return objective

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        del optimizer
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if self._group is None:
            return
        self._group.lead = self._config.lead
        self._buckets = list(buckets(self._parameters, self._config.bucket_mb << 20))
        self._exchanges, gradients = (
            Exchanges(
                self._group.mesh,
                len(self._buckets),
                self._config.patience,
                self._group.is_lost,
                about=about,
                era=self._world.rollbacks,
            )
            for about in (PARAMETERS, GRADIENTS)
        )
        self._gradients = NodeGradients(gradients, self._buckets)
        self._exchanges.listen(self._step)  # before anybody goes on from the agreement below
        gradients.listen(self._step)
        if not self._world.newcomer:
            check_same(self._group, model)
            if not self._resumed:
                self._start_equal(model)
        if not self._world.newcomer and not self._adapts_first:
            self._send()

    def mix(self) -> None:
        if self._config.node_gradients and self._group is not None:
            self._gradients.average_(self._step, self._neighbours(self._group))
        if not self._adapts_first:
            self._combine()

    def publish(self) -> None:
        if self._group is None:
            return
        self._send()
        if self._adapts_first:
            self._combine()

    def mean_(self, tensor: Tensor) -> Tensor:
        if self._group is None:
            return tensor
        return self._group.sum_(tensor).div_(self._world.size)

    @property
    def _group(self) -> Group | None:
        return self._world.control if isinstance(self._world.control, Group) else None

    @property
    def _adapts_first(self) -> bool:
        return self._config.order == "adapt_then_combine"

    # ------------------------------------------------------------ mixing

    def _send(self) -> None:
        """Start the exchange of the next mixing."""
        group = self._group
        assert group is not None
        self._follow_members(group)
        self._weights = {}
        if self._is_global(self._step):
            return
        peers, members = self._schedule.peers(self._step, group.me.slot), group.slots()
        self._weights = {slot: (members[slot].uid, weight) for slot, weight in peers.items()}
        for uid, _ in self._weights.values():
            self._exchanges.begin(self._step, uid)
        for number, flat in enumerate(self._flat_copies()):
            finite = is_finite(flat)
            self._judge(finite=finite)
            if not finite:
                for uid, _ in self._weights.values():
                    self._exchanges.refuse(self._step, uid)
                return
            self._publish(number, flat)

    def _judge(self, *, finite: bool) -> None:
        """Weights that are not finite would spread from replica to replica."""
        if not finite and not self._withholds:
            self._withheld = "weights are not finite, and the other replicas don't get them"
        self._withholds = not finite

    def _publish(self, number: int, flat: Tensor) -> None:
        """Send a piece to all peers; where they hear the same, it is encoded once."""
        bodies: dict[payload.Payload, Tensor] = {}
        for slot, (uid, _) in self._weights.items():
            edge = self._edge(slot)
            if edge not in bodies:
                bodies[edge] = edge.encode(number, flat)
            self._exchanges.publish(self._step, uid, number, bodies[edge], copy_done(flat))

    def _flat_copies(self) -> Generator[Tensor]:
        """Of the parameters, by bucket; in the memory of the last ones where these are sent."""
        if not self._flats or not self._exchanges.all_sent():
            self._flats = [
                bucket[0].new_empty(sum(parameter.numel() for parameter in bucket))
                for bucket in self._buckets
            ]
        for bucket, flat in zip(self._buckets, self._flats, strict=True):
            yield flattened(bucket, flat)

    @torch.no_grad()
    def _combine(self) -> None:
        """``x ← x + Σ_j W_ij (x_j − x_i)``, without the edges that did not come about."""
        if self._group is None:
            return
        if self._is_global(self._step):
            self._judge(finite=average_finite_(self._parameters, self.mean_))
        for slot, (uid, weight) in self._weights.items():
            edge = self._edge(slot)
            differences = [
                edge.difference(number, body)
                for number, body in enumerate(self._exchanges.arriving(self._step, uid))
            ]
            if self._exchanges.happens(self._step, uid):
                edge.commit()
                for bucket, difference in zip(self._buckets, differences, strict=True):
                    add_(bucket, difference, weight)
            else:
                self._self_loops += 1
        self._exchanges.close(self._step)
        self._step += 1

    def _is_global(self, step: int) -> bool:
        every = self._config.global_every
        return every is not None and (step + 1) % every == 0

    def _edge(self, slot: int) -> payload.Payload:
        if self._config.payload == "int8":
            return self._edges.setdefault(slot, payload.Differences())
        dtype = torch.bfloat16 if self._config.payload == "bf16" else None
        return self._edges.setdefault(-1, payload.Plain(dtype))

    def _follow_members(self, group: Group) -> None:
        """After a change of members, the topology of those that are there now."""
        if self._generation == self._world.generation:
            return
        self._generation = self._world.generation
        nodes = {member.slot: self._node(member.slot, member.node) for member in group.members}
        self._schedule = schedule(self._topology, nodes, nodes)
        uids = {member.slot: member.uid for member in group.members}
        known = self._uids or uids
        self._edges = {s: e for s, e in self._edges.items() if s < 0 or uids.get(s) == known.get(s)}
        self._uids = uids

    def _neighbours(self, group: Group) -> list[int]:
        """The other workers of this machine, by uid."""
        nodes = {member.uid: self._node(member.slot, member.node) for member in group.members}
        return [uid for uid in nodes if uid != group.me.uid and nodes[uid] == nodes[group.me.uid]]

    def _node(self, slot: int, node: int) -> int:
        per_node = self._config.ranks_per_node
        return node if per_node is None else slot // per_node

    # ------------------------------------------------------------ beside training

    @torch.no_grad()
    def _start_equal(self, model: nn.Module) -> None:
        """All replicas become rank 0's."""
        group = self._group
        assert group is not None
        tensors = [*model.parameters(), *model.buffers()]
        if not self._world.main:
            for tensor in tensors:
                tensor.zero_()
        for tensor in tensors:
            group.sum_(tensor)

    @contextmanager
    def averaged(self, net: nn.Module) -> Generator[nn.Module]:
        if self._group is None:
            yield net
            return
        tensors = [t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()]
        own = [tensor.detach().clone() for tensor in tensors]
        average_(tensors, self.mean_)
        if net is self._net:
            self._observe(own, tensors, num=len(list(net.parameters())))
        try:
            yield net
        finally:
            with torch.no_grad():
                for tensor, before in zip(tensors, own, strict=True):
                    tensor.copy_(before)

    def _observe(self, own: Sequence[Tensor], mean: Sequence[Tensor], num: int) -> None:
        """Facts about all replicas for the log; the first `num` tensors are parameters."""
        assert self._group is not None
        pairs = list(zip(own, mean, strict=True))[:num]
        square = sum((x - m.detach()).double().square().sum().item() for x, m in pairs)
        sent = self._exchanges.bytes_sent + self._gradients.exchanges.bytes_sent
        facts = self._group.gather((square, sent, self._self_loops))
        squares, sent, loops = zip(*facts, strict=True)
        self._facts = {
            "consensus_distance": math.sqrt(sum(squares) / len(squares)),
            "bytes_sent": float(sum(sent)),
            "self_loops": float(sum(loops)),
        }

    def metrics(self) -> dict[str, float]:
        """As of the last evaluation, over all workers that are left.

        `consensus_distance` is the root mean square of ‖x_i − x̄‖; `bytes_sent` counts parameters
        and gradients; `self_loops` exchanges that did not come about.
        """
        return self._facts

    def withheld(self) -> str | None:
        told, self._withheld = self._withheld, None
        return told

    def state_dict(self) -> dict[str, Any]:
        """The exchange under way follows from it: what was sent is a function of x and `edges`."""
        return {
            "step": self._step,
            "slots": list(self._uids),
            "edges": {slot: edge.state_dict() for slot, edge in self._edges.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Another number of workers starts with edges of its own."""
        self._step = state["step"]
        self._resumed = True
        group = self._group
        slots = [member.slot for member in group.members] if group is not None else []
        if self._world.newcomer or slots != state["slots"]:
            return
        for slot, edge in state["edges"].items():
            device = self._world.device
            memory = {
                name: {number: tensor.to(device) for number, tensor in kept.items()}
                for name, kept in edge.items()
            }
            self._edge(slot).load_state_dict(memory)
