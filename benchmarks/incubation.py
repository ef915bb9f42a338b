"""The module phase of Deep Incubation: JSON on stdout.

    OMP_NUM_THREADS=1 python benchmarks/incubation.py
    OMP_NUM_THREADS=1 python benchmarks/incubation.py --processes 2

A step (forward and backward) of ViT-B's module i inside its meta network, with everything else
frozen, as here, and with only what comes before the module frozen, as published. Both share their
weights and take turns; what counts is the median over rounds of the ratio of their processor time
(on a GPU: time). Counting a block's forward pass and each of its two gradients as one unit, the
ratios would be 18/15, 16/14, 14/13 and 1. Memory is what a pass allocates beyond what was there
before it, at most. With two processes: the bytes that DDP hands to the all-reduce in a step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import FileStore, GradBucket  # pyright: ignore[reportPrivateImportUsage]
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from graftwerk.axes import Batch
from graftwerk.models.config import Model
from graftwerk.models.division import Division
from graftwerk.models.factory import build_model
from graftwerk.models.stages import layout
from graftwerk.objectives.config import Incubate

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
CPU = torch.profiler.ProfilerActivity.CPU
CLASSES = 1000


class Setting:
    """Module `index` of the network inside its meta network, and one batch."""

    def __init__(self, name: str, depth: int, index: int, batch: int, folder: Path) -> None:
        torch.manual_seed(0)
        model, divide = Model(name=name, depths=(depth,)), (depth // 4,) * 4
        meta = folder / f"meta_{depth}.pth"
        if not meta.exists():
            torch.save(build(model.model_copy(update={"depths": (4,)})).state_dict(), meta)
        node = Incubate(divide=divide, meta_divide=(1, 1, 1, 1), index=index, meta=meta)
        net = build(node.network(model))
        objective: Any = node.build(net, channels=3, sizes={})
        self.objective: nn.Module = objective.to(DEVICE).train()
        self.target = [p for p in net.parameters() if p.requires_grad]
        inside = (*(1,) * index, divide[index], *(1,) * (3 - index))
        division, places = Division.of(inside, (sum(inside),), key="divide"), layout(net)
        self.behind = [p for n, p in net.named_parameters() if places.owner(n, division) > index]
        images = torch.randn(batch, 3, 224, 224, device=DEVICE)
        targets = torch.randint(CLASSES, (batch,), device=DEVICE)
        self.batch = Batch(images, targets, torch.arange(batch))

    def freeze(self, published: bool) -> None:
        for parameter in self.behind:
            parameter.requires_grad_(published)
            parameter.grad = None

    def step(self) -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            output = self.objective(self.batch)
        output.loss.backward()
        for parameter in (*self.target, *self.behind):
            parameter.grad = None


def build(model: Model) -> nn.Module:
    return build_model(model, num_classes=CLASSES, in_chans=3, img_size=(224, 224))


def seconds(setting: Setting, steps: int) -> float:
    synchronize()
    clock = time.perf_counter if GPU else time.process_time
    start = clock()
    for _ in range(steps):
        setting.step()
    synchronize()
    return clock() - start


def synchronize() -> None:
    if GPU:
        torch.cuda.synchronize()


def peak_mib(setting: Setting) -> float:
    if GPU:
        synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        setting.step()
        synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[CPU], profile_memory=True) as profile:
        setting.step()
    live = peak = 0
    events = profile.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            peak = max(peak, live)
    return peak / 2**20


def limit(depth: int, index: int) -> float:
    """Units of the published step over ours."""
    own, behind = 3 * depth // 4 + index, 3 - index
    return (own + 3 * behind) / (own + 2 * behind)


def compare(setting: Setting, depth: int, index: int, rounds: int, steps: int) -> dict[str, Any]:
    times: dict[bool, list[float]] = {False: [], True: []}
    memory: dict[bool, float] = {}
    for published in times:
        setting.freeze(published)
        setting.step()
        memory[published] = peak_mib(setting)
    for number in range(rounds):
        for published in (False, True) if number % 2 else (True, False):
            setting.freeze(published)
            times[published].append(seconds(setting, steps))
    ratios = [there / here for there, here in zip(times[True], times[False], strict=True)]
    first, median, third = statistics.quantiles(ratios, n=4)
    return {
        "index": index,
        "published_over_ours": round(median, 4),
        "quartiles": [round(first, 4), round(third, 4)],
        "limit": round(limit(depth, index), 4),
        "of_limit": round(median / limit(depth, index), 4),
        "peak_mib": round(memory[False], 1),
        "published_peak_mib": round(memory[True], 1),
    }


def all_reduced(rank: int, options: argparse.Namespace, folder: str, bytes_by_index: Any) -> None:
    """What rank 0's DDP hands to the all-reduce in a step of each module."""
    store = FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for index in range(4):
        setting = Setting(options.model, options.depth, index, 1, Path(folder))
        count = [0]

        def hook(bucket: GradBucket, count: list[int] = count) -> Any:
            count[0] += bucket.buffer().nbytes
            future: Any = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model = DistributedDataParallel(setting.objective)
        model.register_comm_hook(None, lambda _, bucket, hook=hook: hook(bucket))  # pyright: ignore
        model(setting.batch).loss.backward()
        if rank == 0:
            bytes_by_index[index] = (count[0], sum(p.numel() * 4 for p in setting.target))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=64 if GPU else 2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    options = parser.parse_args()
    facts = {
        "benchmark": "incubation",
        "model": options.model,
        "batch": options.batch,
        "device": torch.cuda.get_device_name() if GPU else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as folder:
        if options.processes == 1:
            facts["modules"] = [
                compare(
                    Setting(options.model, options.depth, index, options.batch, Path(folder)),
                    options.depth,
                    index,
                    options.rounds,
                    options.steps,
                )
                for index in range(4)
            ]
        else:
            with multiprocessing.Manager() as manager:
                found: Any = manager.dict()
                spawn(all_reduced, (options, folder, found), nprocs=2)
                facts["bytes"] = [
                    {"index": index, "all_reduced": found[index][0], "module": found[index][1]}
                    for index in range(4)
                ]
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
