"""Ports, interfaces, and whether local ranks can talk to each other; whether Slurm answers."""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import psutil
import torch

from graftwerk.distributed import gather, join, sum_
from graftwerk.doctor.finding import Finding, amount
from graftwerk.launch.local import environment
from graftwerk.ports import free_port, is_free

PORTS = (29_400, 29_500)
"""What torchrun meets at where nobody says otherwise."""
INTERFACE = "GLOO_SOCKET_IFNAME"
TENSOR = 2**22
"""Bytes of the tensor that is summed."""
PATIENCE = 60.0
"""Seconds for ranks to find each other; a login node may be busy."""


def check() -> Iterator[Finding]:
    yield _ports()
    yield _interface()
    yield _slurm()


def _ports() -> Finding:
    taken = [port for port in PORTS if not is_free(port)]
    if taken:
        ports = ", ".join(map(str, taken))
        advice = (
            "give torchrun another --master-port or --rdzv-endpoint; graftwerk's own launchers do"
        )
        return Finding("ports", f"{ports} in use", "note", advice)
    return Finding("ports", f"{', '.join(map(str, PORTS))} free")


def _interface() -> Finding:
    """gloo listens on the one whose address the host's name stands for, unless told otherwise."""
    named = os.environ.get(INTERFACE)
    addresses = {
        address.address: name
        for name, found in psutil.net_if_addrs().items()
        for address in found
        if address.family in (socket.AF_INET, socket.AF_INET6)
    }
    up = sorted({name for name in addresses.values() if not name.startswith("lo")})
    if named is not None:
        if named in addresses.values():
            return Finding("interface", f"{named}, by {INTERFACE}")
        advice = f"{INTERFACE} should be one of {', '.join(up) or 'none here'}"
        return Finding("interface", f"{INTERFACE}={named}: no such interface", "broken", advice)
    host = socket.gethostname()
    try:
        own = socket.gethostbyname(host)
    except OSError:
        own = ""
    name = addresses.get(own)
    if name is None:
        why = f"{host} stands for {own or 'no address'}, which is not of this machine"
    elif name.startswith("lo"):
        why = f"{host} stands for {own}, which other machines can't reach"
    else:
        return Finding("interface", f"{name} ({own})")
    advice = f"for runs on several nodes: export {INTERFACE}={up[0] if up else '…'}"
    return Finding("interface", why, "note", advice)


def round_trip(ranks: int) -> Finding:
    """Local ranks form a group as a run's do, and add a tensor up.

    They are forked, which has to happen before this process uses a GPU.
    """
    context = mp.get_context("fork")
    answers: mp.Queue[Any] = context.Queue()
    env = environment(ranks, free_port()) | {"OMP_NUM_THREADS": "1"}
    processes = [
        context.Process(target=_talk, args=(answers, rank, env), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    what = f"{ranks} local ranks"
    try:
        said = [answers.get(timeout=PATIENCE) for _ in processes]
    except queue.Empty:
        advice = f"a firewall, or a wrong {INTERFACE}, keeps processes of this machine apart"
        return Finding(what, f"did not meet within {PATIENCE:.0f} s", "broken", advice)
    finally:
        for process in processes:
            process.kill()
            process.join()
    problems = [answer for answer in said if isinstance(answer, str)]
    if problems:
        return Finding(what, problems[0], "broken", "see the message; NCCL_DEBUG=INFO says more")
    device, seconds = said[0][0], max(answer[1] for answer in said)
    backend = "NCCL" if device == "cuda" else "gloo"
    return Finding(what, f"{backend}: {amount(TENSOR)} summed in {1e3 * seconds:.1f} ms")


def _talk(answers: mp.Queue[Any], rank: int, env: dict[str, str]) -> None:
    os.environ |= env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        device = "auto" if torch.cuda.device_count() >= int(env["WORLD_SIZE"]) else "cpu"
        with join(device) as world:
            tensor = torch.full((TENSOR // 4,), float(rank), device=world.device)
            sum_(world, tensor.clone())  # the first one connects
            gather(world, rank)
            began = time.perf_counter()
            total = sum_(world, tensor)[0].item()
            seconds = time.perf_counter() - began
            gather(world, rank)
        wanted = sum(range(world.size))
        answers.put((world.device.type, seconds) if total == wanted else f"{total} not {wanted}")
    except Exception as error:
        answers.put(f"rank {rank}: {type(error).__name__}: {error}".splitlines()[0])


def _slurm() -> Finding:
    if shutil.which("sinfo") is None:
        return Finding("Slurm", "not installed here")
    command = ["sinfo", "--noheader", "--format=%P %D %T"]
    advice = "jobs can't be submitted from here: scontrol ping, SLURM_CONF, or ask the site"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return Finding("Slurm", "does not answer within 5 s", "note", advice)
    if done.returncode:
        said = next(iter(done.stderr.strip().splitlines()), f"sinfo ends with {done.returncode}")
        return Finding("Slurm", said, "note", advice)
    partitions = [line.split() for line in done.stdout.splitlines()]
    shown = ", ".join(f"{name} {count} {state}" for name, count, state in partitions[:4])
    return Finding("Slurm", f"{len(partitions)} partitions and states: {shown}")
