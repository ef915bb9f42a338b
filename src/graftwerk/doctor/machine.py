"""Versions, devices, memory, limits and the clock of this machine."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import torch
from torch.cuda import nccl

from graftwerk.doctor.finding import Finding, amount

TORCH = (2, 11)
SHARED_MEMORY = Path("/dev/shm")
ENOUGH_SHARED = 2**30
"""Bytes: a loader process holds a few batches of some hundred MB there."""
ENOUGH_FILES = 4096
"""Each batch of each loader process, and each archive, holds some open."""
EPOCH_2020 = 1_577_836_800


def check() -> Iterator[Finding]:
    yield from _versions()
    yield _devices()
    yield _cores()
    yield _memory()
    yield _shared_memory()
    yield _open_files()
    yield _clock()


def _versions() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} on {platform.machine()}")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU alone"
    found = f"{torch.__version__}, built {built}"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < TORCH:
        wanted = ".".join(map(str, TORCH))
        yield Finding("torch", found, "broken", f"pip install 'torch>={wanted}'")
    else:
        yield Finding("torch", found)
    for name in ("torchvision", "timm"):
        yield Finding(name, metadata.version(name))
    if torch.version.cuda:
        version = ".".join(map(str, nccl.version()))
        yield Finding("cuDNN, NCCL", f"{torch.backends.cudnn.version()}, {version}")


def _devices() -> Finding:
    """`nvidia-smi` tells of GPUs that torch can't use."""
    driver = nvidia_smi("driver_version,name")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        version = driver[0].split(",")[0] if driver else "unknown"
        return Finding("devices", f"{', '.join(names)}; driver {version}")
    if not driver:
        return Finding("devices", "no GPU: runs train on the CPU")
    if torch.version.cuda is None:
        advice = "this torch knows no GPUs: install the build for CUDA (pytorch.org)"
    else:
        advice = (
            f"torch can't use them: its CUDA {torch.version.cuda} may need a newer driver, or "
            "CUDA_VISIBLE_DEVICES hides them"
        )
    return Finding("devices", "; ".join(driver), "broken", advice)


def nvidia_smi(query: str) -> list[str]:
    """A line for each GPU of the machine; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def _cores() -> Finding:
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    found = f"{usable} of {there} cores, load {os.getloadavg()[0]:.1f}"
    if usable == 1 and there > 1:
        advice = "this process may use one core: ask the scheduler for more (launch.slurm.cpus)"
        return Finding("cores", found, "note", advice)
    return Finding("cores", found)


def _memory() -> Finding:
    free = psutil.virtual_memory().available
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    capped = "" if limit == resource.RLIM_INFINITY else f", limited to {amount(limit)} a process"
    return Finding("memory", f"{amount(free)} free{capped}")


def _shared_memory(folder: Path = SHARED_MEMORY) -> Finding:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        advice = "loader processes need it: mount a tmpfs there, or set data.workers=0"
        return Finding("shared memory", f"no {folder}", "broken", advice)
    found = f"{amount(usage.free)} of {amount(usage.total)} free in {folder}"
    if usage.free < ENOUGH_SHARED:
        advice = "a batch of large images may not fit: --shm-size=8g for containers"
        return Finding("shared memory", found, "note", advice)
    return Finding("shared memory", found)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < ENOUGH_FILES:
        more = "ulimit -n " + (str(hard) if hard > soft else f"{ENOUGH_FILES} (ask the site)")
        return Finding("open files", f"{soft:,} a process", "note", more)
    return Finding("open files", f"{soft:,} a process")


def _clock() -> Finding:
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.time() < EPOCH_2020:
        return Finding("clock", found, "broken", "set the clock: certificates and locks need it")
    return Finding("clock", found)
