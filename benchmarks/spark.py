"""SparK's executions side by side: JSON on stdout.

    OMP_NUM_THREADS=1 python benchmarks/spark.py --model resnet50

Forward and backward of the encoder alone (plain dense network, masked, packed) and of the whole
step (masked and packed at each decoder width). The contenders take turns; what counts is the median
over rounds of the ratio of two neighbours. Memory is what one pass allocates beyond what was there
before it, gradients of parameters included only at the peak: `kept` between forward and backward,
`peak` at most.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import timm
import torch
from torch import Tensor

from graftwerk.models.sparse.decoder import Decoder, Densify, Norm
from graftwerk.models.sparse.encoder import Execution, SparseEncoder
from graftwerk.models.sparse.mask import Mask, random_mask

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
CPU = torch.profiler.ProfilerActivity.CPU
TURN = "from forward to backward"
Contender = Callable[[], Tensor]


def autocast() -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU)


class Setting:
    """One network, one batch of images and one mask; every contender gets its own weights' copy."""

    def __init__(self, name: str, batch: int, size: int, ratio: float) -> None:
        torch.manual_seed(0)
        self.plain = timm.create_model(name, num_classes=0).to(DEVICE).train()
        self.plain.to(memory_format=torch.channels_last)
        self.norm: Norm = "layer" if "convnext" in name else "batch"
        self.visible = random_mask(batch, size // 32, size // 32, ratio)
        self.mask = Mask(self.visible, DEVICE)
        images = torch.randn(batch, 3, size, size, device=DEVICE)
        self.images = images.contiguous(memory_format=torch.channels_last)

    def plain_encoder(self) -> Contender:
        net = copy.deepcopy(self.plain)
        forward: Callable[..., list[Tensor]] = net.forward_intermediates  # pyright: ignore[reportAssignmentType]

        def run() -> Tensor:
            with autocast():
                features = forward(self.images, intermediates_only=True)[-4:]
            return total(features)

        return run

    def sparse_encoder(self, execution: Execution) -> Contender:
        net = copy.deepcopy(self.plain)
        encoder = SparseEncoder(net, execution)

        def run() -> Tensor:
            self.mask = Mask(self.visible, DEVICE)
            with autocast():
                return total(encoder(net, self.images, self.mask))

        return run

    def whole(self, execution: Literal["masked", "packed"], width: int) -> Contender:
        net = copy.deepcopy(self.plain)
        encoder = SparseEncoder(net, execution)
        torch.manual_seed(1)
        densify = Densify(encoder.channels, width, self.norm, execution).to(DEVICE)
        decoder = Decoder(encoder.strides[-1], width).to(DEVICE)
        for module in (densify, decoder):
            module.to(memory_format=torch.channels_last)

        def run() -> Tensor:
            self.mask = Mask(self.visible, DEVICE)
            with autocast():
                dense = densify(encoder(net, self.images, self.mask), self.mask)
                pixels = decoder(dense)
            return published_loss(pixels.float(), self.images, self.mask)

        return run


def total(features: list[Tensor]) -> Tensor:
    return torch.stack([feature.float().square().mean() for feature in features]).sum()


def published_loss(pixels: Tensor, images: Tensor, mask: Mask) -> Tensor:
    ours, theirs = (patches(x, mask.rows, mask.columns) for x in (pixels, images))
    theirs = (theirs - theirs.mean(-1, keepdim=True)) / (theirs.var(-1, keepdim=True) + 1e-6).sqrt()
    hidden = ~mask.visible_nhw.flatten(1)
    return ((ours - theirs).square().mean(-1) * hidden).sum() / (hidden.sum() + 1e-8)


def patches(x: Tensor, rows: int, columns: int) -> Tensor:
    n, c, height, width = x.shape
    x = x.view(n, c, rows, height // rows, columns, width // columns)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, rows * columns, -1)


def seconds(contender: Contender) -> float:
    synchronize()
    start = clock()
    contender().backward()
    synchronize()
    return clock() - start


def clock() -> float:
    """One thread on a CPU is measured by its own time, whatever else the machine does."""
    alone = not GPU and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


def synchronize() -> None:
    if GPU:
        torch.cuda.synchronize()


def memory(contender: Contender) -> tuple[int, int]:
    """Bytes kept between forward and backward, and at the peak, of a second pass."""
    contender().backward()
    return _memory_on_gpu(contender) if GPU else _memory_on_cpu(contender)


def _memory_on_gpu(contender: Contender) -> tuple[int, int]:
    synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = contender()
    kept = torch.cuda.memory_allocated() - before
    loss.backward()
    return kept, torch.cuda.max_memory_allocated() - before


def _memory_on_cpu(contender: Contender) -> tuple[int, int]:
    with torch.profiler.profile(activities=[CPU], profile_memory=True) as profile:
        loss = contender()
        with torch.profiler.record_function(TURN):
            pass
        loss.backward()
    events = profile.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    turn = next(event.start_ns() for event in events if event.name() == TURN)
    live = kept = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            peak = max(peak, live)
            kept = live if event.start_ns() < turn else kept
    return kept, peak


class Result(NamedTuple):
    seconds: list[float]
    loss: float
    kept_mib: float
    peak_mib: float


def quartiles(group: dict[str, Result], one: str, other: str) -> list[float]:
    """Of the ratio of the times of two contenders, round by round: first, median, third."""
    pairs = zip(group[one].seconds, group[other].seconds, strict=True)
    ratios = [a / b for a, b in pairs]
    return [round(q, 3) for q in statistics.quantiles(ratios, n=4, method="inclusive")]


def compare(contenders: dict[str, Contender], rounds: int) -> dict[str, Result]:
    """In each round every contender runs once."""
    losses = {name: contender().item() for name, contender in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            times[name].append(seconds(contender))
    return {
        name: Result(times[name], losses[name], *(round(b / 2**20, 1) for b in memory(contender)))
        for name, contender in contenders.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=256 if GPU else 4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--mask-ratio", type=float, default=0.6)
    parser.add_argument("--widths", type=int, nargs="*", default=[512, 768])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    setting = Setting(options.model, options.batch, options.size, options.mask_ratio)
    executions: tuple[Literal["masked", "packed"], ...] = ("masked", "packed")
    groups: dict[str, dict[str, Contender]] = {
        "encoder": {"plain": setting.plain_encoder()}
        | {how: setting.sparse_encoder(how) for how in executions}
    }
    for width in options.widths:
        groups[f"step, width {width}"] = {how: setting.whole(how, width) for how in executions}
    results = {name: compare(group, options.rounds) for name, group in groups.items()}
    facts = {
        "benchmark": "spark",
        "model": options.model,
        "batch": options.batch,
        "size": options.size,
        "mask_ratio": options.mask_ratio,
        "masked_over_packed_quartiles": {
            name: quartiles(group, "masked", "packed") for name, group in results.items()
        },
        "plain_over_packed_quartiles": quartiles(results["encoder"], "plain", "packed"),
        "kept_packed_over_masked": {
            name: round(group["packed"].kept_mib / group["masked"].kept_mib, 3)
            for name, group in results.items()
        },
        "peak_packed_over_masked": {
            name: round(group["packed"].peak_mib / group["masked"].peak_mib, 3)
            for name, group in results.items()
        },
        "loss_difference": {
            name: abs(group["packed"].loss / group["masked"].loss - 1)
            for name, group in results.items()
        },
        "results": {
            name: {which: result._asdict() for which, result in group.items()}
            for name, group in results.items()
        },
        "device": torch.cuda.get_device_name() if GPU else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
