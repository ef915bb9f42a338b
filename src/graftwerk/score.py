"""What comes after training: scores of saved networks, and their export to timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from graftwerk import config
from graftwerk.axes import World
from graftwerk.checkpoint import Entry
from graftwerk.distributed import join
from graftwerk.errors import ConfigError, StorageError
from graftwerk.evaluate import evaluate
from graftwerk.export import export
from graftwerk.files import atomic
from graftwerk.models.config import Model
from graftwerk.models.division import Divide
from graftwerk.models.published import published
from graftwerk.models.weights import load_weights, read_state_dict
from graftwerk.parts import Parts, build_net
from graftwerk.recalibrate import recalibrate_
from graftwerk.recipes import find
from graftwerk.run import Run
from graftwerk.runfolder import RunFolder


def score(
    source: Path,
    recipe: str | None,
    overrides: dict[str, Any],
    *,
    which: str,
    as_json: bool,
) -> str:
    """Scores of a run folder, an exported folder or a weight file, as a table or JSON."""
    if not source.exists():
        raise ConfigError([f"{source}: no such file or folder"])
    saved = (source / "run.json").exists()
    run = RunFolder.open(source).run if saved else _run_for_weights(source, recipe)
    run = config.override(Run, run, overrides)
    with join(run.device) as world:
        parts = run.build(world)
        if saved:
            nets, notes = _networks(RunFolder.open(source), which, parts)
        else:
            report = load_weights(parts.objective.net, read_state_dict(source))
            nets, notes = {"": parts.objective.net}, report.lines()
        scores = {f"{prefix}{k}": v for prefix, net in nets.items() for k, v in _score(parts, net)}
    if not world.main:
        return ""
    if as_json:
        return json.dumps(scores)
    return "\n".join([*notes, *(f"{name:12} {value:.6g}" for name, value in scores.items())])


def _score(parts: Parts, net: nn.Module) -> list[tuple[str, float]]:
    scores = evaluate(
        parts.objective,
        net,
        parts.eval_batches(),
        precision=parts.precision,
        world=parts.world,
        to_device=parts.to_device,
        on_problem=print,
    )
    return list(scores.items())


def _networks(
    folder: RunFolder, which: str, parts: Parts
) -> tuple[dict[str, nn.Module], list[str]]:
    """The network of a checkpoint and, where one was kept, its moving average."""
    entry, state = folder.checkpoint(which)
    parts.objective.load_state_dict(state["parts"]["objective"])
    nets = {"": parts.objective.net}
    if parts.ema is not None:
        parts.ema.load_state_dict(state["parts"]["ema"])
        nets["ema_"] = parts.ema.module
    for net in nets.values():
        recalibrate_(parts, net)
    return nets, [f"{entry.folder} (step {entry.step})"]


def _run_for_weights(source: Path, recipe: str | None) -> Run:
    """The recipe that was named, with the architecture that an exported folder states."""
    run = find(recipe) if recipe is not None else Run()
    facts = source / "config.json"
    if not facts.exists():
        return run
    architecture = json.loads(facts.read_text())
    model = Model(name=architecture["architecture"], args=architecture.get("model_args", {}))
    return run.model_copy(update={"model": model})


def export_run(
    source: Path, target: Path, which: str, weights: str, *, compact: bool = False
) -> str:
    """Export the network of a run's checkpoint; the command that loads it."""
    folder = RunFolder.open(source)
    run, facts = folder.run, folder.facts
    net, entry, averaged = _trained(folder, which, weights)
    export(
        net,
        target,
        model=run.network,
        num_classes=len(facts["classes"]),
        classes=facts["classes"],
        input_size=(run.data.channels, *run.eval_size),
        mean=run.data.mean,
        std=run.data.std,
        interpolation=run.augment.interpolation,
        crop=run.evaluate.crop,
        crop_mode=run.evaluate.crop_mode,
        facts={
            "run": run.name,
            "step": entry.step,
            "scores": entry.manifest()["scores"],
            "weights": "moving average" if averaged else "raw",
            "norm_eps": run.model.norm_eps,
            **folder.environment(),
        },
        compact=compact,
    )
    if compact:
        return f"{target}: graftwerk.inference.load('{target}') loads it"
    return f"{target}: timm.create_model('local-dir:{target}', pretrained=True) loads it"


def export_stages(source: Path, target: Path, which: str, weights: str, divide: str) -> str:
    """Write the network of a run's checkpoint as Deep Incubation's code reads it."""
    if target.exists():
        raise ConfigError([f"{target}: exists already; name a new file, or remove it first"])
    try:
        modules = TypeAdapter[Divide](Divide).validate_python(config.parse_value(divide))
    except ValidationError:
        raise ConfigError(
            [f"--divide: should be the blocks of each module, as [3,3,3,3] (got {divide})"]
        ) from None
    net, _, _ = _trained(RunFolder.open(source), which, weights)
    contents = published(net, modules)
    try:
        with atomic(target) as file:
            torch.save(contents, file)
    except OSError as error:
        raise StorageError(f"{target}: can't be written ({error.strerror or error})") from error
    return f"{target}: --meta_model, --incubation_models and --finetune load it"


def _trained(folder: RunFolder, which: str, weights: str) -> tuple[nn.Module, Entry, bool]:
    """The network of a run's checkpoint, and whether it is the moving average."""
    entry, state = folder.checkpoint(which)
    model = _without_weights(folder.run.model)
    run = folder.run.model_copy(update={"model": model})
    net, _ = build_net(run, len(folder.facts["classes"]))
    averaged = state["parts"]["ema"] is not None
    if weights == "ema" and not averaged:
        raise ConfigError(
            [f"{folder.path}: this run kept no moving average (ema.decay is not set)"]
        )
    averaged = averaged and weights != "raw"
    own = state["parts"]["ema"] if averaged else _net_of(state["parts"]["objective"])
    net.load_state_dict(own)
    if getattr(run.sync, "recalibrate", 0):
        recalibrate_(run.build(World()), net)
    return net, entry, averaged


def _without_weights(model: Model) -> Model:
    return model.model_copy(update={"pretrained": None, "modules": ()})


def _net_of(objective: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries of `net` in an objective's state."""
    return {k.removeprefix("net."): v for k, v in objective.items() if k.startswith("net.")}
