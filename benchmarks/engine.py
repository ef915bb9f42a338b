"""The loop of graftwerk against a loop written by hand: what do axes, logs and seeds cost?

    python benchmarks/engine.py [--steps 200]

Both train timm's resnet18 on the same digits with the same transform (64 px, batch 32), in one
process, in turns: a step of the one, then a step of the other, so that a busy machine slows both
alike. graftwerk runs as users run it, with its logs on. Prints JSON: the median over pairs of steps
of their ratio in time (graftwerk ÷ by hand), with its quartiles. With a GPU it trains at 224 px,
batch 256, in bf16, channels_last and compiled.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.transforms_factory import create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset

from graftwerk import axes, runfolder
from graftwerk.axes import Step
from graftwerk.config import override
from graftwerk.data.config import Augment, Digits
from graftwerk.distributed import join
from graftwerk.log.config import Log
from graftwerk.optim.config import Optim
from graftwerk.run import BatchSize, Evaluate, Run
from graftwerk.sparsity.config import Sparsity
from graftwerk.train import train

GPU = torch.cuda.is_available()


class Turns:
    """Two loops, each in its thread, of which one runs at a time: from step end to step end."""

    def __init__(self, *names: str) -> None:
        self.times: dict[str, list[float]] = {name: [] for name in names}
        self._turn = {name: threading.Semaphore(0) for name in names}
        self._other = dict(zip(names, reversed(names), strict=True))
        self._began = 0.0

    def begin(self, name: str) -> None:
        self._turn[name].acquire()
        self._began = time.perf_counter()

    def give(self, name: str) -> None:
        self._turn[name].release()

    def end(self, name: str) -> None:
        """Note the time that this turn took, and let the other loop run."""
        if GPU:
            torch.cuda.synchronize()
        self.times[name].append(time.perf_counter() - self._began)
        self.give(self._other[name])


TURNS = Turns("graftwerk", "by hand")


class Stopwatch(Sparsity, kind="stopwatch"):
    def build(self) -> axes.Sparsity:
        return StopwatchSparsity()


class StopwatchSparsity(axes.Sparsity):
    """Ends a turn after each step; the network stays dense."""

    def after_step(self, step: Step) -> None:
        del step
        TURNS.end("graftwerk")
        TURNS.begin("graftwerk")


def config(folder: Path) -> Run:
    return Run(
        name="engine",
        data=Digits(mode="rgb", mean=(0.3,) * 3, std=(0.4,) * 3, workers=8 if GPU else 0),
        augment=Augment(size=224 if GPU else 64, hflip=0.5),
        batch=BatchSize(size=256 if GPU else 32),
        optim=Optim(name="momentum", lr=0.01),
        precision="bf16" if GPU else "fp32",
        compile="default" if GPU else "off",
        sparsity=Stopwatch(),
        evaluate=Evaluate(every=1000),
        log=Log(folder=folder, console="quiet"),
    )


class Images(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, run: Run) -> None:
        self.source = run.data.open(run.seed).train
        self.transform: Any = create_transform(
            run.augment.height_width, is_training=True, interpolation="bicubic",
            color_jitter=0.0, mean=run.data.mean, std=run.data.std,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, target = self.source.read(index)
        return self.transform(image.convert("RGB")), target  # pyright: ignore[reportAttributeAccessIssue]


def by_hand(run: Run, steps: int) -> None:
    device = torch.device("cuda" if GPU else "cpu")
    loader = DataLoader(
        Images(run), run.batch.size, shuffle=True, num_workers=run.data.workers or 0,
        drop_last=True, pin_memory=GPU,
    )  # fmt: skip
    model = timm.create_model("resnet18", num_classes=10).to(device).train()
    model = model.to(memory_format=torch.channels_last)
    if GPU:
        model.compile()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    criterion = nn.CrossEntropyLoss()
    done = 0
    TURNS.begin("by hand")
    while done < steps:
        for images, targets in loader:
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            targets = targets.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=GPU):
                loss = criterion(model(images), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            TURNS.end("by hand")
            done += 1
            if done == steps:
                return
            TURNS.begin("by hand")


def by_graftwerk(run: Run, steps: int) -> None:
    run = override(Run, run, {"steps": steps})
    runfolder.prepare(run)
    with join("auto") as world:
        TURNS.begin("graftwerk")
        train(run, world)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200, help="of each loop")
    steps: int = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        run = config(Path(folder))
        other = threading.Thread(target=by_hand, args=(run, steps), daemon=True)
        other.start()
        TURNS.give("graftwerk")
        by_graftwerk(run, steps)
        other.join()
    warm = steps // 10
    pairs = zip(TURNS.times["graftwerk"][warm:], TURNS.times["by hand"][warm:], strict=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    low, median, high = statistics.quantiles(ratios, n=4)
    facts = {
        "benchmark": "engine",
        "ratio_median": round(median, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)],
        "pairs": len(ratios),
        "device": torch.cuda.get_device_name() if GPU else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
