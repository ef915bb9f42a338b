"""Ranks meet before their group is made, so that it is known who has not come."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import (
    DistError,  # pyright: ignore[reportPrivateImportUsage]
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    Store,  # pyright: ignore[reportPrivateImportUsage]
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)

from graftwerk.axes import World
from graftwerk.errors import AGAIN, GraftwerkError

NEWS = 30.0
"""Seconds that the other ranks give rank 0 to say who is missing."""
COMPLETE = "all are here"


class MissingError(GraftwerkError):
    """Not all ranks came in time; names those that did not, and their hosts."""

    exit_code = AGAIN


def open_store(rank: int, timeout: float) -> Store:
    """The launcher's store, or one that rank 0 opens at MASTER_ADDR:MASTER_PORT.

    Raises MissingError where it can't be reached within `timeout` seconds.
    """
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(
            host,
            port,
            is_master=rank == 0 and not agents,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
        )
    except DistError as error:
        who = "torchrun" if agents else "rank 0"
        raise MissingError(
            f"rank {rank} on {socket.gethostname()} did not reach {who} at {host}:{port} within "
            f"{timeout:.0f} s ({next(iter(str(error).splitlines()), '')})"
        ) from None
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"ranks-{restarts}", store)  # torchrun's store outlives its workers


def meet(store: Store, world: World, timeout: float, host_of: Callable[[int], str | None]) -> None:
    """Return once all ranks have called this; `host_of` tells where a rank is expected.

    Raises MissingError on every rank where some did not come within `timeout` seconds.
    """
    store.set(f"arrived/{world.rank}", f"{socket.gethostname()} {os.getpid()}")
    if store.add("arrivals", 1) == world.size:
        store.set("verdict", COMPLETE)
    try:
        patience = timeout if world.main else timeout + NEWS
        store.wait(["verdict"], timedelta(seconds=patience))
    except DistError:
        if not world.main:
            raise MissingError(
                f"rank {world.rank} on {socket.gethostname()} heard nothing of rank 0 within "
                f"{timeout + NEWS:.0f} s"
            ) from None
        absent = _absent(store, world, timeout, host_of)
        if store.compare_set("verdict", "", absent).decode() == absent:
            time.sleep(1.0)  # the others read it in the store, which may end with this process
    verdict = store.get("verdict").decode()
    if verdict != COMPLETE:
        raise MissingError(verdict)


def _absent(
    store: Store, world: World, timeout: float, host_of: Callable[[int], str | None]
) -> str:
    here = {
        rank: store.get(f"arrived/{rank}").decode().split()
        for rank in range(world.size)
        if store.check([f"arrived/{rank}"])
    }
    nodes = {rank // world.local_size: host for rank, (host, _) in here.items()}

    def expected(rank: int) -> str:
        return host_of(rank) or nodes.get(rank // world.local_size) or "an unknown host"

    missing = [f"rank {rank} ({expected(rank)})" for rank in range(world.size) if rank not in here]
    came = [f"rank {rank} ({host}, process {pid})" for rank, (host, pid) in here.items()]
    return (
        f"{len(missing)} of {world.size} processes did not come within {timeout:.0f} s: "
        f"{', '.join(missing)}; here are {', '.join(came)}"
    )
