"""Ranks that don't come, stop or are killed: who it was is said, and the run ends to go on."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from doubles import tiny
from graftwerk import arrival
from graftwerk.arrival import MissingError, meet
from graftwerk.axes import World
from graftwerk.board import Board
from graftwerk.log.summary import summarize
from graftwerk.pace import TIMES, WINDOW, Pace, Stragglers, slow_ranks
from graftwerk.signals import StoppedError, last_moment
from running import (
    TINY,
    Forked,
    checkpoints,
    newest_state,
    only_run,
    records,
    train_here,
    until,
)

pytestmark = pytest.mark.long

# ---------------------------------------------------------------- start


def nobody_knows(rank: int) -> str | None:
    del rank
    return None


def test_ranks_that_do_not_come_are_named_with_their_hosts() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("arrived/2", "node7 42")
    world = World(rank=0, size=5, local_size=1)

    def host_of(rank: int) -> str | None:
        return {1: "node6"}.get(rank)

    with pytest.raises(MissingError) as caught:
        meet(store, world, 0.2, host_of)
    assert caught.value.exit_code == 75
    here = f"rank 0 ({socket.gethostname()}, process {os.getpid()}), rank 2 (node7, process 42)"
    assert str(caught.value) == (
        "3 of 5 processes did not come within 0 s: rank 1 (node6), rank 3 (an unknown host), "
        f"rank 4 (an unknown host); here are {here}"
    )


def test_a_missing_rank_of_a_node_whose_others_came_is_expected_there() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("arrived/2", "node7 42")
    world = World(rank=0, size=4, local_size=2)
    with pytest.raises(MissingError, match=r"rank 1 \(.*\), rank 3 \(node7\)"):
        meet(store, world, 0.2, nobody_knows)


def test_all_learn_who_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "NEWS", 60.0)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    other = store.clone()  # pyright: ignore[reportAttributeAccessIssue]
    said = in_thread(lambda: meet(other, World(rank=1, size=3), 0.2, nobody_knows))
    with pytest.raises(MissingError) as caught:
        meet(store, World(rank=0, size=3), 0.2, nobody_knows)
    assert str(said()) == str(caught.value)


def test_all_that_come_go_on() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    other = store.clone()  # pyright: ignore[reportAttributeAccessIssue]
    said = in_thread(lambda: meet(other, World(rank=1, size=2), 60, nobody_knows))
    meet(store, World(rank=0, size=2), 60, nobody_knows)
    assert said() is None


def test_rank_0_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
        port = str(silent.getsockname()[1])
        monkeypatch.setenv("MASTER_PORT", port)
        said = rf"did not reach rank 0 at 127.0.0.1:{port} within 1 s"
        with pytest.raises(MissingError, match=said):
            arrival.open_store(1, 1.0)


def in_thread(work: Callable[[], None]) -> Callable[[], BaseException | None]:
    """Its error, once it has ended."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future.exception


# ---------------------------------------------------------------- who is slow, who is silent


def test_slow_ranks_are_measured_against_the_others() -> None:
    assert slow_ranks({0: 1.0, 1: 1.0, 2: 2.0, 3: 1.1}) == {2: 2.0}
    assert slow_ranks({0: 1.0, 1: 2.0}) == {1: 2.0}
    assert slow_ranks({0: 1.0, 1: 1.4}) == {}
    assert slow_ranks({0: 1.0}) == {}
    assert slow_ranks({0: 0.0, 1: 0.0}) == {}


def test_a_straggler_is_told_once_and_only_if_it_lasts() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng, stragglers = random.Random(seed), Stragglers()
    busy, told = [0.0] * 4, list[dict[int, float]]()
    for window in range(12):
        for rank in range(4):
            slow = (rank == 3 and window > 4) or (rank == 1 and window == 2)
            busy[rank] += WINDOW * rng.uniform(0.9, 1.1) * (3.0 if slow else 1.0)
        told.append(stragglers.update({r: (WINDOW * window, busy[r]) for r in range(4)}))
    assert [w for w, ranks in enumerate(told) if ranks] == [4 + TIMES]
    assert told[4 + TIMES].keys() == {3}
    assert 2 < told[4 + TIMES][3] < 4


def test_pace_counts_forward_passes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal now
            now += 0.25
            return x

    pace, net = Pace(torch.device("cpu")), Slow()
    pace.follow(net)
    for _ in range(3):
        net(torch.zeros(1))
        now += 8.0
    assert pace.busy == 0.75


def test_a_board_tells_who_stands_where_and_who_does_not_answer() -> None:
    store, where = HashStore(), {0: (17, "", 1.0), 1: (17, "", 1.0), 2: (16, "evaluating", 1.0)}
    boards = [
        Board(World(rank=rank, size=3), store, lambda rank=rank: where[rank]) for rank in (0, 1, 2)
    ]
    for board in boards:
        board.start(0.01)
    boards[0].call()
    until(lambda: boards[1].alarm and boards[2].alarm)
    assert boards[1].alarm == f"rank 0 on {socket.gethostname()}"
    boards[1].call()
    until(lambda: boards[0].reported == {0, 1} and len(boards[0].positions) == 3)
    host = socket.gethostname()
    silent = f"no answer from rank 2 on {host}, last seen after step 16, evaluating"
    assert boards[0].missing().startswith(silent)
    boards[2].call()
    until(lambda: boards[0].reported == {0, 1, 2})
    assert f"furthest behind: rank 2 on {host} after step 16" in boards[0].missing()
    for board in boards:
        board.stop()


def test_rank_0_hears_of_stragglers_from_the_board() -> None:
    store, where = HashStore(), {0: (0, "", 0.0), 1: (0, "", 0.0)}
    boards = [
        Board(World(rank=rank, size=2), store, lambda rank=rank: where[rank]) for rank in (0, 1)
    ]
    for board in boards:
        board.start(0.01)
    news: list[dict[str, Any]] = []

    def told() -> bool:
        for rank, seconds in ((0, 1.0), (1, 4.0)):
            done, _, busy = where[rank]
            where[rank] = done + 1, "", busy + seconds
        news.extend(boards[0].news())
        return bool(news)

    until(told)
    assert news[0]["slow_rank"] == 1
    assert news[0]["host"] == socket.gethostname()
    assert "rank 1" in news[0]["reason"]
    assert boards[1].news() == []
    for board in boards:
        board.stop()


def test_the_last_moment_of_a_job() -> None:
    env = {"SLURM_JOB_START_TIME": "1000", "SLURM_JOB_END_TIME": "2000"}
    assert last_moment(env, 60) == 1940
    assert last_moment(env, 600) == 1900
    assert last_moment({}, 60) == float("inf")
    assert last_moment(env | {"SLURM_JOB_END_TIME": "N/A"}, 60) == float("inf")


def test_a_run_saves_and_stops_by_itself_before_its_job_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setenv("SLURM_JOB_START_TIME", str(now - 1000))
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(now + 30))
    with pytest.raises(StoppedError, match="stopped by the job's time limit after step 1") as error:
        train_here(tiny(), tmp_path)
    assert error.value.exit_code == 75
    assert newest_state(only_run(tmp_path))[0] == 1


# ---------------------------------------------------------------- real processes

WORDS = [
    *("steps=1000", "objective=unhurried", "processes=2", "batch.micro=16", "log.every=1"),
    *("evaluate.every=1000", "save=3 steps", "log.tensorboard=false", "log.console=lines"),
    "faults.start_timeout=150",
]


@contextmanager
def training(folder: Path, out: Path, *words: str) -> Generator[Forked]:
    """A run on two ranks that has begun to train."""
    words = ("run", TINY, *WORDS, *words, f"log.folder={folder}")
    with Forked(*words, out=out, ranks=2) as process:
        until(lambda: len(checkpoints(folder)) > 1, process, out.read_text)
        yield process


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named_and_the_run_ends_to_go_on(tmp_path: Path, rank: int) -> None:
    folder, out = tmp_path / "runs", tmp_path / "out"
    with training(folder, out, "faults.hang=2", "faults.hang_floor=8") as process:
        stopped, left = process.ranks[rank], process.ranks[1 - rank]
        assert stopped.pid is not None
        os.kill(stopped.pid, signal.SIGSTOP)
        left.join()
    said = out.read_text()
    assert left.exitcode == 75, said
    other, host = 1 - rank, socket.gethostname()
    assert f"rank {other} on {host}, after step" in said
    assert "nothing has moved for" in said
    # Rank 0 holds the store here, which then is what does not answer.
    wrong = "the store does not answer" if rank == 0 else f"no answer from rank 1 on {host}"
    assert wrong in said
    stacks = (only_run(folder) / "stacks" / f"rank-{other}.txt").read_text()
    assert "train.py" in stacks
    assert wrong in stacks
    assert not (only_run(folder) / "stacks" / f"rank-{rank}.txt").exists()


def test_a_slow_rank_is_told_and_a_killed_one_ends_the_run_to_go_on(tmp_path: Path) -> None:
    folder, out, host = tmp_path / "runs", tmp_path / "out", socket.gethostname()
    with training(folder, out, "objective.rank=1", "batch.size=8", "batch.micro=4") as process:
        run = only_run(folder)

        def stragglers() -> list[dict[str, Any]]:
            return [event for event in records(run, "event") if event["event"] == "straggler"]

        (found,) = until(stragglers, process, out.read_text)
        assert (found["slow_rank"], found["host"]) == (1, host)
        assert f"host {host}: rank 1 on {host} takes" in "\n".join(summarize(run).lines())
        process.ranks[1].kill()
        process.ranks[0].join()
        said = out.read_text()
        assert process.ranks[0].exitcode == 75, said
    assert "lost another rank" in said
    assert "Traceback" not in said
    assert records(run, "train")
