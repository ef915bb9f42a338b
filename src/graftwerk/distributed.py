"""Who this process is among its peers: under torchrun, under srun, or alone."""

from __future__ import annotations

import itertools
import os
import re
import socket
import subprocess
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch.distributed import (
    DistError,  # pyright: ignore[reportPrivateImportUsage]
)
from torch.distributed.distributed_c10d import PrefixStore, Store

from graftwerk.arrival import meet, open_store
from graftwerk.axes import Control, World
from graftwerk.errors import AGAIN, CRASH, ConfigError, GraftwerkError

T = TypeVar("T")


def ranks_from_environment() -> tuple[int, int, int, int]:
    """(rank, world size, local rank, local world size), from RANK…, else from SLURM_STEP_….

    Under srun, MASTER_ADDR and MASTER_PORT are filled in where they are missing: the first host
    of the step, and a port from the job id.
    """
    env = os.environ
    if "RANK" in env:
        size = int(env.get("WORLD_SIZE", "1"))
        local_size = int(env.get("LOCAL_WORLD_SIZE", str(size)))
        return int(env["RANK"]), size, int(env.get("LOCAL_RANK", "0")), local_size
    if "SLURM_STEP_NUM_TASKS" in env:
        env.setdefault("MASTER_ADDR", first_host(env["SLURM_STEP_NODELIST"]))
        env.setdefault("MASTER_PORT", str(port_of_job(int(env["SLURM_JOB_ID"]))))
        rank, local_rank = int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"])
        local_size = tasks_on_node(env["SLURM_STEP_TASKS_PER_NODE"], int(env["SLURM_NODEID"]))
        return rank, int(env["SLURM_STEP_NUM_TASKS"]), local_rank, local_size
    return 0, 1, 0, 1


def hosts(nodelist: str) -> list[str]:
    """Of Slurm's ``gpu[07-08],login1``: ``gpu07``, ``gpu08``, ``login1``."""
    command = ["scontrol", "show", "hostnames", nodelist]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def first_host(nodelist: str) -> str:
    return hosts(nodelist)[0]


def expected_host(rank: int) -> str | None:
    """Where srun starts a rank; None where another launcher does."""
    env = os.environ
    if "RANK" in env or "SLURM_STEP_NODELIST" not in env:
        return None
    for node, host in enumerate(hosts(env["SLURM_STEP_NODELIST"])):
        rank -= tasks_on_node(env["SLURM_STEP_TASKS_PER_NODE"], node)
        if rank < 0:
            return host
    return None


def port_of_job(job: int) -> int:
    """Different for jobs that may share a host, and below the ports that systems hand out."""
    return 10_000 + job % 20_000


def tasks_on_node(counts: str, node: int) -> int:
    """Slurm's ``2(x3),1`` means 2, 2, 2, 1 tasks on four nodes."""
    per_node: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        per_node += [int(count)] * int(times or 1)
    return per_node[node]


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """`auto` is this rank's GPU where there is one."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(["device: 'cuda' was asked for, but torch sees no GPU on this machine"])
    visible = torch.cuda.device_count()
    if local_rank >= visible:
        raise ConfigError(
            [f"processes: local rank {local_rank} has no GPU of its own ({visible} visible)"]
        )
    return torch.device("cuda", local_rank)


LEAVING = 10.0
"""Seconds that a rank waits for the others at the end."""


class Gloo:
    """`axes.Control` over a gloo group of its own; none of its ranks may die."""

    def __init__(self) -> None:
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def gather(self, fact: Any) -> list[Any]:
        facts: list[Any] = [None] * self._group.size()
        dist.all_gather_object(facts, fact, group=self._group)
        return facts

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor)
        return tensor

    def boundary(self, flags: Sequence[int]) -> list[int]:
        """The agreement of a boundary travels while the next step computes."""
        before = self._pending
        now = torch.tensor(flags)
        work = dist.all_reduce(now, dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = work, now
        if before is None:
            return [0] * len(flags)
        before[0].wait()
        return before[1].tolist()

    def finish(self) -> None:
        """Let the last agreement arrive, unless others have ended without it."""
        if self._pending is not None:
            with suppress(RuntimeError):
                self._pending[0].wait(timedelta(seconds=LEAVING))


@contextmanager
def join(
    device: str, *, timeout: float | None = None, start_timeout: float = 600.0
) -> Generator[World]:
    """The group of this run, left again on exit.

    With a `timeout` it survives the death of members, given up after so many seconds of silence.
    Raises MissingError where not all come within `start_timeout` seconds, and PeerLostError where
    the connection to another rank breaks later.
    """
    rank, size, local_rank, local_size = ranks_from_environment()
    world = World(rank, size, local_rank, local_size, choose_device(device, local_rank))
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if size == 1:
        yield world
    elif timeout is None:
        with _fixed(world, start_timeout):
            yield world
    else:
        with _elastic(world, timeout):
            yield world


class PeerLostError(GraftwerkError):
    """Another rank of the group has ended, or can't be reached."""

    exit_code = AGAIN


@contextmanager
def _fixed(world: World, start_timeout: float) -> Generator[None]:
    backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
    store = world.store = _meeting_place(world, start_timeout)
    meet(store, world, start_timeout, expected_host)
    dist.init_process_group(
        backend,
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=start_timeout),
    )
    control = world.control = Gloo()
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, DistError) and "gloo" not in str(error):
            raise
        raise PeerLostError(f"lost another rank: {str(error).splitlines()[0]}") from None
    finally:
        control.finish()
        dist.destroy_process_group()


def shorten_timeout(seconds: float) -> None:
    """Of collectives on gradients, once training has warmed up; facts may go on taking longer."""
    set_timeout = getattr(dist, "set_timeout", None)
    if set_timeout is None:  # as older versions of torch call it
        set_timeout = c10d._set_pg_timeout  # pyright: ignore[reportPrivateUsage, reportDeprecated]
    if dist.is_initialized():
        set_timeout(timedelta(seconds=seconds))


_groups = itertools.count()
_stores: dict[tuple[str, str], Store] = {}


def _meeting_place(world: World, timeout: float) -> Store:
    """A part of the ranks' store for one group; the store itself outlives the groups of all runs.

    The port could not be opened again at once, and a group must not read an earlier one's keys.
    """
    place = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if place not in _stores:
        _stores[place] = open_store(world.rank, timeout)
    return PrefixStore(f"group-{next(_groups)}", _stores[place])


@contextmanager
def _elastic(world: World, timeout: float) -> Generator[None]:
    from graftwerk.elastic import meeting

    group = world.control = meeting.meet(
        world,
        meeting.open_store(world.rank),
        timeout=timeout,
        host=meeting.own_address(os.environ["MASTER_ADDR"]),
        node=node_from_environment(world),
        start=int(os.environ[meeting.START]) if meeting.START in os.environ else None,
    )
    finished = False
    try:
        yield
        finished = True
    finally:
        group.close(finished=finished)


def node_from_environment(world: World) -> int:
    """The machine's number, as torchrun or Slurm count them; else from the ranks."""
    for name in ("GROUP_RANK", "SLURM_NODEID"):
        if name in os.environ:
            return int(os.environ[name])
    return world.rank // world.local_size


def gather(world: World, fact: Any) -> list[Any]:
    """`fact` of every rank, in rank order, on every rank."""
    return [fact] if world.size == 1 else _control(world).gather(fact)


def from_main(world: World, fact: Any) -> Any:
    """Rank 0's `fact`, on every rank."""
    return on_main(world, lambda: fact)


def on_main(world: World, work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank; an error for people is raised on every rank.

    Where rank 0 dies before the others know, its successor does the work.
    """
    while True:
        outcomes: list[T | GraftwerkError] = []
        if world.main:
            try:
                outcomes.append(work())
            except GraftwerkError as error:
                outcomes.append(error)
        found = [outcome for outcomes in gather(world, outcomes) for outcome in outcomes]
        if found:
            break
    if isinstance(found[0], GraftwerkError):
        raise found[0]
    return cast(T, found[0])


class ElsewhereError(GraftwerkError):
    """What failed on another rank, whose `exit_code` it has."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def on_all(world: World, work: Callable[[], T]) -> T:
    """What `work` returns on this rank. A call of all ranks together, to do what each does alone.

    Where it fails on any rank, all end: nobody waits for that one, and all say why. Raises its own
    error there, and ElsewhereError on the others.
    """
    done: list[T] = []
    error: Exception | None = None
    try:
        done.append(work())
    except Exception as failed:
        error = failed
    for rank, problem in enumerate(gather(world, _told(error))):
        if error is not None:
            raise error
        if problem is not None:
            raise ElsewhereError(f"rank {rank} on {problem[0]}: {problem[1]}", problem[2])
    return done[0]


def _told(error: Exception | None) -> tuple[str, str, int] | None:
    """(host, message, exit code)."""
    if error is None:
        return None
    for_people = isinstance(error, GraftwerkError)
    message = str(error) if for_people else f"{type(error).__name__}: {error}"
    return socket.gethostname(), message, error.exit_code if for_people else CRASH


def sum_(world: World, tensor: torch.Tensor) -> torch.Tensor:
    """In place, the sum over ranks."""
    return tensor if world.size == 1 else _control(world).sum_(tensor)


def _control(world: World) -> Control:
    if world.control is None:
        raise RuntimeError(f"{world.size} ranks, and no group of them")
    return world.control
