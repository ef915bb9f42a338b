"""What the worker processes of tests/elastic and tests/launch do: members of a group, no more."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from graftwerk.axes import World
from graftwerk.distributed import join
from graftwerk.elastic import meeting
from graftwerk.elastic.group import Group
from graftwerk.elastic.membership import ApartError
from graftwerk.errors import GraftwerkError
from graftwerk.launch.supervise import supervise


def gathering(rank: int, size: int, port: int, timeout: float, *, reports: bool) -> None:
    """Exchange facts until there is a "stop" in the store; the process ends with the exit code.

    After a "hold" all but rank 2 are silent, and wait for nothing. Those that report tell the store
    what they see; a store out of reach would block them.
    """
    store = TCPStore("127.0.0.1", port, is_master=False)
    world = World(rank, size, rank, size)
    group = meeting.meet(world, store, timeout=timeout, host="127.0.0.1", node=0, start=0)
    world.control = group
    try:
        while True:
            orders = group.gather([w for w in ("stop", "hold") if reports and store.check([w])])
            if ["stop"] in orders:
                return
            if ["hold"] in orders and rank != 2:
                store.set(f"holding {rank}", "")
                time.sleep(600)
            if reports:
                store.set(f"seen by {rank}", " ".join(map(str, group.slots())))
            time.sleep(0.05)
    except ApartError as error:
        if reports:
            store.set(f"error of {rank}", str(error))
        sys.exit(error.exit_code)


def supervised(size: int, folder: Path, timeout: float) -> None:
    """A supervisor of `size` workers that take part until there is a file "stop" in `folder`."""
    command = [sys.executable, __file__, str(folder), str(timeout)]
    sys.exit(supervise(size, command, restarts=3))


def take_part(world: World, folder: Path) -> None:
    """Append process number and members to the file of this worker whenever members change."""
    group = world.control
    assert isinstance(group, Group)
    slot, generation = group.me.slot, -1
    if world.newcomer:
        group.enter()
    while group.boundary([(folder / "stop").exists()]) == [0]:
        group.admit(lambda: None)
        if world.generation != generation:
            generation = world.generation
            with (folder / str(slot)).open("a") as file:
                file.write(f"{os.getpid()} {' '.join(map(str, group.slots()))}\n")
        time.sleep(0.05)


def main() -> None:
    try:
        with join("cpu", timeout=float(sys.argv[2])) as world:
            take_part(world, Path(sys.argv[1]))
    except GraftwerkError as error:
        print(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
