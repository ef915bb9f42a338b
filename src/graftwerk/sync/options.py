"""The commands about topologies and networks, and their words; help must not import torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from graftwerk.errors import DONE


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `topology` and `simulate-sync`; `command` makes one's parser."""
    sub = command(
        topology,
        "show a gossip topology: matrices, steps to consensus, bytes, a drawing",
        usage="NAME --workers N [--nodes N] [--max-peers K] [--parameters P] [--to FILE.png]",
        takes_keys=False,
    )
    sub.add_argument("name", help="a topology's name, or FILE.py:FUNCTION")
    _add_workers(sub)
    sub.add_argument("--max-peers", type=int, default=1, help="the k of base_k")
    sub.add_argument("--to", type=Path, help="draw it into this PNG")
    sub = command(
        simulate_sync,
        "predict the time of a step with all-reduce and with each topology",
        usage="--workers N --mbit RATE --step-ms MS [option …]",
        takes_keys=False,
    )
    _add_workers(sub)
    sub.add_argument("--mbit", type=float, required=True, help="rate of a node's link, Mbit/s")
    sub.add_argument("--latency-ms", type=float, default=0.1, help="one way, in milliseconds")
    sub.add_argument("--step-ms", type=float, required=True, help="a step without communication")
    sub.add_argument(
        "--jitter", type=float, default=0.0, help="standard deviation of step times / their mean"
    )
    sub.add_argument("--slow-workers", type=int, default=0)
    sub.add_argument("--slow-factor", type=float, default=3.0)
    sub.add_argument("--wait-ms", type=float, help="gossip: the longest wait for a late peer")
    sub.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--nodes", type=int, help="machines; as many as workers if not given")
    parser.add_argument(
        "--parameters", type=float, default=25_557_032, help="of the network; ResNet-50's"
    )


def topology(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del words, arguments
    from graftwerk.sync.report import show

    print(
        show(
            options.name,
            workers=options.workers,
            nodes=options.nodes or options.workers,
            max_peers=options.max_peers,
            parameters=int(options.parameters),
            to=options.to,
        )
    )
    return DONE


def simulate_sync(options: argparse.Namespace, words: list[str], arguments: list[str]) -> int:
    del words, arguments
    from graftwerk.sync import simulate

    network = simulate.Network(
        workers=options.workers,
        nodes=options.nodes or options.workers,
        bandwidth=options.mbit * 1e6 / 8,
        latency=options.latency_ms / 1e3,
        compute=options.step_ms / 1e3,
        jitter=options.jitter,
        slow_workers=options.slow_workers,
        slow_factor=options.slow_factor,
    )
    wait = None if options.wait_ms is None else options.wait_ms / 1e3
    predicted = simulate.predict(network, int(options.parameters), wait)
    if options.json:
        print(json.dumps(simulate.as_dict(predicted, network)))
    else:
        print(simulate.as_table(predicted, network))
    return DONE
