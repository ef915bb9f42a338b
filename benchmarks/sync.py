"""Time per step of all-reduce, post-local SGD and gossip on links of a stated rate.

    sudo python benchmarks/sync.py [--workers 4] [--rates 0 1000 300 100] [--rounds 3]

Each worker is a process in a network namespace of its own, behind a link of that rate in Mbit/s
in both directions (0: no limit), with `--latency-ms` through a relay. Contenders take turns, a
block of steps each, in the same processes; `--slow 3` measures again with the last worker slowed
by that factor: in every step it pauses for twice what one without communication takes. `--kill`
ends with a worker killed in the middle of a gossip run. All workers share the processor, also in
the step without communication.

Prints JSON: for every rate and contender the median over rounds of the step's time, of its ratio to
DDP's and to `max(step without communication, bytes sent ÷ rate)`, and what `graftwerk
simulate-sync` predicts from the step without communication. Ratios are of blocks of one round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
from netns import Cluster, missing

from graftwerk.sync import simulate
from graftwerk.sync.topology import PAYLOADS, TOPOLOGIES

WORKER = Path(__file__).with_name("sync_worker.py")
DDP = "allreduce"
ALONE = "none"
WARMUP = 4
"""Steps before the clock: a period of every topology of four workers, since int8 begins in full."""
KILLED_AFTER = 15
"""Steps of the engine's run."""
RUN = [
    *("run", "digits", "model=test_resnet", "batch=16", "steps=50", "schedule.warmup_epochs=0"),
    *("device=cpu", "evaluate.every=1000", "save.every=1000steps", "log.every=1"),
    *("log.console=quiet", "sync=gossip", "sync.timeout=1", "sync.patience=1"),
]


class Contender(NamedTuple):
    name: str
    sync: dict[str, Any]


class Block(NamedTuple):
    """A measured step of one contender, on the worker for which each is largest."""

    step: float
    """Seconds."""
    sent: float
    """Bytes on the wire."""
    busy: float
    """Seconds of processor time of the worker's process."""


def environment(cluster: Cluster) -> dict[str, str]:
    """What a launcher tells every worker."""
    return {
        "WORLD_SIZE": str(cluster.count),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": cluster.address(0),
        "MASTER_PORT": "29500",
        "OMP_NUM_THREADS": "1",
    }


class Workers:
    """The processes of sync_worker.py, which live as long as the cluster."""

    def __init__(self, cluster: Cluster, options: argparse.Namespace) -> None:
        self._options = options
        env = environment(cluster)
        self.processes = [
            cluster.start(rank, [sys.executable, str(WORKER)], env | {"RANK": str(rank)})
            for rank in range(cluster.count)
        ]

    def ask(self, sync: dict[str, Any], *, steps: int, pause: float) -> None:
        options = self._options
        asked = {
            "sync": sync,
            "steps": WARMUP + steps,
            "pause": pause,
            "model": options.model,
            "size": options.size,
            "batch": options.batch,
        }
        for process in self.processes:
            if process.poll() is None:
                assert process.stdin is not None
                process.stdin.write(json.dumps(asked) + "\n")
                process.stdin.flush()

    def answers(self) -> list[dict[str, Any] | None]:
        """What each worker measured; None from one that is gone."""
        return [self._answer(process) for process in self.processes]

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any] | None:
        assert process.stdout is not None
        line = process.stdout.readline()
        return json.loads(line) if line else None

    def block(self, contender: Contender, pause: float, steps: int) -> Block:
        """Means over the steps after the warm-up."""
        self.ask(contender.sync, steps=steps, pause=pause)
        answers = [answer for answer in self.answers() if answer is not None]
        if len(answers) < len(self.processes):
            raise SystemExit(f"a worker failed with {contender.name}: see its message above")
        return Block(
            *(
                max((a[what][-1] - a[what][-1 - steps]) / steps for a in answers)
                for what in ("ends", "sent", "busy")
            )
        )


def contenders(topologies: Sequence[str], payloads: Sequence[str]) -> list[Contender]:
    return [
        Contender(ALONE, {"kind": "none"}),
        Contender(DDP, {"kind": "allreduce"}),
        Contender("post-local-SGD /4", {"kind": "post_local_sgd", "period": 4}),
        *(
            Contender(
                f"{topology} {payload}",
                {"kind": "gossip", "topology": topology, "payload": payload, "patience": 120},
            )
            for topology in topologies
            for payload in payloads
        ),
    ]


def predicted(
    options: argparse.Namespace, mbit: float, slow: float, compute: float
) -> dict[str, float]:
    """Seconds per step by contender; a link without limit is taken for 100 Gbit/s."""
    network = simulate.Network(
        workers=options.workers,
        nodes=options.workers,
        bandwidth=(mbit or 1e5) * 1e6 / 8,
        latency=2 * options.latency_ms / 1e3,
        compute=compute,
        slow_workers=int(slow > 1),
        slow_factor=slow,
    )
    found = simulate.predict(network, parameters(options.model))
    return {
        p.method if p.method not in TOPOLOGIES else f"{p.method} {p.payload}": p.step for p in found
    }


def parameters(model: str) -> int:
    return sum(parameter.numel() for parameter in timm.create_model(model).parameters())


def compare(
    workers: Workers,
    field: Sequence[Contender],
    options: argparse.Namespace,
    mbit: float,
    slow: float,
) -> dict[str, Any]:
    """All contenders in turn, `rounds` times, at one rate."""
    rounds, computing = list[dict[str, Block]](), list[float]()
    for _ in range(options.rounds):
        computing.append(workers.block(field[0], 0.0, options.steps).step)
        pause = (slow - 1) * computing[-1]
        rounds.append({c.name: workers.block(c, pause, options.steps) for c in field})
    alone = [found[ALONE].step for found in rounds]
    expected = predicted(options, mbit, slow, statistics.median(computing))
    results: dict[str, Any] = {}
    for name in (contender.name for contender in field):
        blocks = [found[name] for found in rounds]
        floors = [
            max(own, block.sent * 8e-6 / mbit if mbit else 0.0)
            for own, block in zip(alone, blocks, strict=True)
        ]
        results[name] = {
            "step_s": _median([block.step for block in blocks]),
            "megabytes_sent": _median([block.sent / 1e6 for block in blocks]),
            "processor_s": _median([block.busy for block in blocks]),
            "over_floor": _median(
                [b.step / floor for b, floor in zip(blocks, floors, strict=True)]
            ),
            "faster_than_ddp": _median([found[DDP].step / found[name].step for found in rounds]),
            "predicted_s": _rounded(expected[name]) if name in expected else None,
        }
        print(f"{mbit:g} Mbit, slow {slow:g}: {name} {results[name]}", file=sys.stderr)
    return {"mbit": mbit, "slow_worker": slow, "contenders": results}


def _median(values: Sequence[float]) -> float:
    return _rounded(statistics.median(values))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def kill_one(cluster: Cluster, topology: str) -> dict[str, Any]:
    """What a SIGKILLed worker costs the others in a whole run of the engine, on free links."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*RUN, f"sync.topology={topology}", f"log.folder={folder}"]
        command = [sys.executable, "-m", "graftwerk", *words]
        env = environment(cluster)
        workers = [
            cluster.start(rank, command, env | {"RANK": str(rank)}) for rank in range(cluster.count)
        ]
        log = Path(folder)
        while len(steps_logged(log)) < KILLED_AFTER:
            if any(worker.poll() is not None for worker in workers):
                raise SystemExit(f"a worker failed with {topology}: see its message above")
            time.sleep(0.1)
        workers[-1].send_signal(signal.SIGKILL)
        codes = [worker.wait() for worker in workers]
        times = [record["time"] for record in steps_logged(log)]
    between = [after - before for before, after in itertools.pairwise(times)]
    cost = max(between[KILLED_AFTER - 1 :]) - statistics.median(between)
    return {"exit_codes": codes, "steps": len(times), "longest_minus_median_s": _rounded(cost)}


def steps_logged(folder: Path) -> list[dict[str, Any]]:
    lines = [line for file in folder.glob("*/log.jsonl") for line in file.open()]
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if record["kind"] == "train"]


def main() -> None:
    reason = missing()
    if reason is not None:
        raise SystemExit(f"skipped: {reason}")
    options = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the network is taken down again
    known = contenders(options.topologies, options.payloads)
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
        "options": vars(options),
        "parameters": parameters(options.model),
        "not_measured": "real networks; accelerators",
        "rates": [],
    }
    with Cluster(options.workers, options.latency_ms / 1e3) as cluster:
        if options.rates:
            workers = Workers(cluster, options)
            for mbit in options.rates:
                cluster.limit(mbit)
                for slow in dict.fromkeys([1.0, options.slow]):
                    report["rates"].append(compare(workers, known, options, mbit, slow))
            cluster.stop()
            cluster.limit(0)
        if options.kill:
            found = {topology: kill_one(cluster, topology) for topology in options.topologies}
            report["killed_worker"] = found
    print(json.dumps(report, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rates", type=float, nargs="*", default=[0, 1000, 300, 100])
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="a multiple of 4, for post-local SGD")
    parser.add_argument("--slow", type=float, default=1.0)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--model", default="resnet18", help="of timm")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=4, help="images of a worker in a step")
    parser.add_argument("--topologies", nargs="*", default=list(TOPOLOGIES))
    parser.add_argument("--payloads", nargs="*", default=list(PAYLOADS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
