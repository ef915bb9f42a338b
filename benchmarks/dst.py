"""What sparse training costs and saves, against the dense step of the same loop.

    OMP_NUM_THREADS=1 python benchmarks/dst.py [--model mlp_cifar10|conv_cifar10|lenet5_caffe]
        [--rounds 12] [--period 100] [--densities 0.1 …] [--executions masked …] [--copies 4]

A network of the paper, first of all its MLP (3072-1024-512-10), batch 128, SGD with Nesterov
momentum, on random inputs: forward, loss, backward, the hooks of the sparsity axis, and the
optimizer's step. All contenders take turns in one process, and what counts is processor time. A
period of DST is Δ - 1 ordinary steps and one with an update of the masks (prune by magnitude, grow
by gradient). Prints JSON: ratios of the median to the median dense step (below 1 is faster).
Inference is the forward pass alone. Bytes are those held at the end of a backward pass without an
update, relative to the dense network's weights, gradients and momentum; `export` compares the files
of both formats.

Where a contender's tensors happen to lie in memory is worth several hundredths of its time:
`--copies` makes several of each and takes the median over all of them.

`block16` is the MLP trained and served in BSR with 16×16 blocks; its last layer of 10 outputs stays
dense.
Nothing here is measured on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from graftwerk import axes
from graftwerk.axes import Batch, Step
from graftwerk.config import load
from graftwerk.models.compressed import compress, size
from graftwerk.models.config import Model
from graftwerk.models.factory import build_model
from graftwerk.models.weights import read_state_dict
from graftwerk.objectives.supervised import Supervised
from graftwerk.optim.config import Optim
from graftwerk.optim.optimizers import build_optimizer
from graftwerk.sparsity.config import Sparsity
from graftwerk.sparsity.kernels import Pattern

IMAGES = {"mlp_cifar10": (3, 32, 32), "conv_cifar10": (3, 32, 32), "lenet5_caffe": (1, 28, 28)}
EXECUTIONS = ["masked", "compact", "csr", "block16"]
BATCH = 128
TOTAL = 10**6
OWN = tuple(f"graftwerk.sparsity.{name}" for name in ("masks", "compact", "execution"))


def contenders(
    model: str, densities: list[float], executions: list[str]
) -> dict[str, dict[str, Any]]:
    """Trees of the sparsity axis by name."""
    dst: dict[str, Any] = {"kind": "dst", "prune": "magnitude", "grow": "gradient", "init": "erk"}
    found: dict[str, dict[str, Any]] = {"dense": {"kind": "dense"}}
    for density in densities:
        for execution in [name for name in executions if name != "block16"]:
            found[f"{execution} {density:g}"] = {**dst, "density": density, "execution": execution}
        if "block16" in executions and model == "mlp_cifar10":
            blocks = {"structure": "block16", "exclude": ["head"], "execution": "bsr"}
            found[f"block16 {density:g}"] = {**dst, "density": density, **blocks}
    return found


@dataclass
class Contender:
    objective: Supervised
    optimizer: torch.optim.Optimizer
    sparsity: axes.Sparsity
    batch: Batch
    period: int
    number: int = 0

    @classmethod
    def make(cls, model: str, tree: dict[str, Any], period: int) -> Contender:
        torch.manual_seed(0)
        channels, *sides = IMAGES[model]
        net = build_model(Model(name=model), num_classes=10, in_chans=channels)
        objective = Supervised(net, loss="ce", smoothing=0.0)
        optimizer = build_optimizer(objective, Optim(name="sgd", weight_decay=5e-4), 0.01)
        images = torch.randn(BATCH, channels, *sides)
        batch = Batch(images, torch.randint(10, (BATCH,)), torch.arange(BATCH))
        every = {"every": period} if tree["kind"] == "dst" else {}
        sparsity: Any = load(Sparsity, tree | every).build()
        sync = axes.Sync()
        sparsity.attach(objective, optimizer, sync, batch, seed=0, total_steps=TOTAL)
        return cls(objective, optimizer, sparsity, batch, period)

    def step(self) -> float:
        step = Step(self.number, epoch=0, total=TOTAL, batch=self.batch)
        began = time.process_time()
        self.objective(self.batch).loss.backward()
        self.sparsity.before_step(step)
        self.optimizer.step()
        self.sparsity.after_step(step)
        self.optimizer.zero_grad()
        self.number += 1
        return time.process_time() - began

    def bytes_held(self) -> int:
        """Weights, gradients, optimizer state, and what the sparsity axis keeps."""
        self.number = 0
        self.step()
        self.objective(self.batch).loss.backward()
        parts: dict[int, Tensor] = {}
        seen = [*self.objective.parameters(), *_tensors(vars(self.sparsity))]
        own = [p for group in self.optimizer.param_groups for p in group["params"]]
        seen += own + _tensors([self.optimizer.state[p] for p in own])
        for tensor in seen:
            parts[tensor.data_ptr()] = tensor
            if tensor.is_leaf and tensor.grad is not None:
                parts[tensor.grad.data_ptr()] = tensor.grad
        self.optimizer.zero_grad()
        self.objective.zero_grad()
        return size(parts.values())

    def update_step(self) -> float:
        """The step of a period that ends with new masks."""
        self.number = self.period - 2
        self.step()
        return self.step()

    @torch.inference_mode()
    def infer(self) -> float:
        began = time.process_time()
        self.objective.net(self.batch.images_nchw)
        return time.process_time() - began


def _tensors(found: Any) -> list[Tensor]:
    """In lists, mappings, and the objects of the sparsity axis."""
    if isinstance(found, Tensor):
        return [found]
    if type(found).__module__ in (*OWN, Pattern.__module__):
        found = found._asdict() if isinstance(found, Pattern) else vars(found)
    if isinstance(found, dict):
        found = list(found.values())
    return [t for item in found for t in _tensors(item)] if isinstance(found, list | tuple) else []


def export(contender: Contender, rounds: int) -> dict[str, float]:
    """Size of the compact file, and time to load it into a network, relative to the file with
    zeros."""
    net = contender.objective.net
    state = net.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{form}.safetensors") for form in ("dense", "compact")]
        save_file(state, paths[0])
        save_file(compress(state), paths[1])
        times: list[list[float]] = [[], []]
        for number in range(2 * rounds):
            began = time.process_time()
            net.load_state_dict(read_state_dict(paths[number % 2]))
            times[number % 2].append(time.process_time() - began)
        sizes = [path.stat().st_size for path in paths]
    dense, compact = map(statistics.median, times)
    return {"size": round(sizes[1] / sizes[0], 4), "load_time": round(compact / dense, 2)}


def measure(
    contenders: dict[str, list[Contender]], what: Callable[[Contender], float], rounds: int
) -> dict[str, list[float]]:
    """Times of each round; the first one warms up, and each begins with another contender.

    A contender does everything twice, and the second time counts: the caches hold what is its own.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    entries = [(name, one) for name, copies in contenders.items() for one in copies]
    for number in range(rounds + 1):
        start = number % len(entries)
        for name, contender in entries[start:] + entries[:start]:
            what(contender)
            seconds = what(contender)
            if number > 0:
                times[name].append(seconds)
    return times


def ratio(times: list[float], dense: list[float]) -> float:
    return statistics.median(times) / statistics.median(dense)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=IMAGES, default="mlp_cifar10")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--period", type=int, default=100)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05, 0.01])
    parser.add_argument("--executions", nargs="+", choices=EXECUTIONS, default=EXECUTIONS)
    parser.add_argument("--copies", type=int, default=1)
    options = parser.parse_args()
    trees = contenders(options.model, options.densities, options.executions)
    live: dict[str, list[Contender]] = {name: [] for name in trees}
    for _ in range(options.copies):
        for name, tree in trees.items():
            live[name].append(Contender.make(options.model, tree, options.period))
    steps = measure(live, Contender.step, options.rounds)
    updates = measure(live, Contender.update_step, max(3, options.rounds // 3))
    inference = measure(live, Contender.infer, options.rounds)
    held = {name: copies[0].bytes_held() for name, copies in live.items()}
    period = options.period
    results: dict[str, dict[str, float]] = {}
    for name in live:
        step = ratio(steps[name], steps["dense"])
        update = ratio(updates[name], updates["dense"])
        results[name] = {
            "step": round(step, 3),
            "update_step": round(update, 2),
            "training_over_a_period": round((step * (period - 1) + update) / period, 3),
            "training_speedup": round(period / (step * (period - 1) + update), 2),
            "bytes": round(held[name] / held["dense"], 3),
            "inference_speedup": round(1 / ratio(inference[name], inference["dense"]), 2),
        }
    machine = {"torch": torch.__version__, "machine": platform.machine()}
    facts = machine | {"threads": torch.get_num_threads(), **vars(options)}
    exports = {
        name: export(live[f"masked {name}"][0], 10)
        for name in map("{:g}".format, options.densities)
        if f"masked {name}" in live
    }
    print(json.dumps({"facts": facts, "ratios_to_dense": results, "export": exports}, indent=1))


if __name__ == "__main__":
    main()
