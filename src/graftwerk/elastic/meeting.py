"""How workers find each other: through the store of whoever launched them."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import (
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    Store,  # pyright: ignore[reportPrivateImportUsage]
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)

from graftwerk.axes import World
from graftwerk.elastic.group import Group
from graftwerk.elastic.membership import (
    ApartError,
    Ballot,
    Heartbeats,
    Member,
    packed,
    unpacked,
)
from graftwerk.elastic.mesh import Mesh

START = "GRAFTWERK_START"
"""How often the launcher had started this rank before."""
FOUNDING = 600.0
"""Seconds that the first workers wait for each other."""
SLOTS = 1 << 20
"""More than any group has."""


def open_store(rank: int) -> Store:
    """This run's part of the launcher's store, or of one that rank 0 opens."""
    OPENED.append(_launchers_store(rank) if not OPENED else OPENED[0])
    return part(OPENED[0], len(OPENED) - 1)


OPENED: list[Store] = []
"""One for each run that this process has taken part in; all are the same store."""


def part(store: Store, number: int) -> Store:
    """What the group of a process's run `number` sees of the store.

    torchrun keeps its store when it restarts all workers, who are then another group.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"graftwerk-{restarts}-{number}", store)


def _launchers_store(rank: int) -> Store:
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and not agents,
        wait_for_workers=False,
        timeout=timedelta(seconds=FOUNDING),
    )


def meet(
    world: World, store: Store, *, timeout: float, host: str, node: int, start: int | None
) -> Group:
    """Found the group with the other first workers, or prepare to join a running one.

    A newcomer's `world` has size 1 until it enters.
    """
    slot, size = world.rank, world.size
    if start is None:
        start = store.add(f"starts/{slot}", 1) - 1
    uid = uid_of(slot, start)
    secret = store.compare_set("secret", "", secrets.token_hex(16))
    mesh = Mesh(uid, host, secret, timeout)
    me = Member(uid, slot, node, mesh.address)
    beats = Heartbeats(another(store), uid, timeout)
    world.newcomer = start > 0 or slot >= size
    members = [me] if world.newcomer else _found(store, me, size)
    ballot = Ballot(another(store), me, beats, lambda: set(mesh.lost), mesh.changed)
    return Group(world, store, members, ballot, mesh)


def uid_of(slot: int, start: int) -> int:
    """Of the process that fills `slot` after it was started `start` times before."""
    return slot + SLOTS * start


def _found(store: Store, me: Member, size: int) -> list[Member]:
    store.set(f"founder/{me.slot}", packed(me))
    keys = [f"founder/{slot}" for slot in range(size)]
    deadline = time.monotonic() + FOUNDING
    while not store.check(keys):
        if time.monotonic() > deadline:
            missing = [slot for slot in range(size) if not store.check([f"founder/{slot}"])]
            raise ApartError(
                f"{len(missing)} of {size} workers did not come within {FOUNDING:.0f} s: "
                f"{', '.join(f'worker {slot}' for slot in missing)}"
            )
        time.sleep(0.02)
    store.set("founded", "")
    return [unpacked(store.get(key)) for key in keys]


def another(store: Store) -> Store:
    """A client of the same store for another thread: a waiting client is blocked for all."""
    clone: Callable[[], Store] | None = getattr(store, "clone", None)
    return clone() if clone is not None else store


def own_address(master: str) -> str:
    """The address of the interface over which `master` is reached."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 1))
        return probe.getsockname()[0]
