"""Reading weight files of this and other projects, and loading what fits."""

from __future__ import annotations

import inspect
import pickle
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from timm.models import model_entrypoint
from torch import Tensor, nn

from graftwerk import checkpoint
from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints
from graftwerk.errors import CheckpointError
from graftwerk.models import compressed
from graftwerk.models.stages import STAGES, VIT, Layout

State = dict[str, Tensor]

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")
"""Keys under which training programs keep weights; the first one present is read.

Moving averages come first, as in timm: they are what such programs report scores of.
"""

WRAPPER_PREFIX = re.compile(r"^(?:module\.|_model\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")
"""What DistributedDataParallel, AveragedModel, Decent-DP and torch.compile put into names."""

SPARK_ENCODER = "sparse_encoder.sp_cnn."
"""Before the encoder's names in SparK's own checkpoints, beside which the decoder is left out."""

META = "meta"
"""The key, in the extra state of an incubated module, of the digest of its meta network."""

NAMES_SHOWN = 8


def read_state_dict(path: Path) -> State:
    """The tensors of a .safetensors or torch file on the CPU, under the names of the bare model.

    A folder that `graftwerk export` or timm wrote stands for its weights, a run folder for the
    network of its best checkpoint, and a checkpoint of SparK for its encoder. Nothing in
    the file is executed. Raises CheckpointError for a file that would need that, is damaged, or
    holds no tensors.
    """
    if (path / "run.json").exists():
        return _of_run(path)
    if path.is_dir():
        compact = path / compressed.FILE
        path = compact if compact.exists() else path / "model.safetensors"
    state = read_weights(path)
    encoder = {
        name.removeprefix(SPARK_ENCODER): value
        for name, value in state.items()
        if name.startswith(SPARK_ENCODER)
    }
    return encoder or state


def read_stages(path: Path) -> list[State]:
    """The modules in a checkpoint of Deep Incubation, under names of their own; else none."""
    return _stages(_read(path))


def _stages(saved: Any) -> list[State]:
    found = cast(Mapping[Any, Any], saved).get(STAGES) if isinstance(saved, Mapping) else None
    return [dict(stage) for stage in found] if isinstance(found, list) else []


def read_weights(path: Path) -> State:
    """All tensors of a weight file, unwrapped, without the prefixes that wrappers add."""
    saved: Any = _read(path)
    if stages := _stages(saved):
        return Layout([VIT], [name for stage in stages for name in stage]).join(stages)
    while (inner := _wrapped(saved)) is not None:
        saved = inner
    named = cast(Mapping[Any, Any], saved).items() if isinstance(saved, Mapping) else ()
    state = {
        WRAPPER_PREFIX.sub("", str(name)): value
        for name, value in named
        if isinstance(value, Tensor)
    }
    if not state:
        raise CheckpointError(
            f"{path}: no weights found; it should hold a state_dict, bare or under one of the "
            f"keys {', '.join(WRAPPERS)}"
        )
    return state


def read_trained(path: Path) -> State:
    """Like `read_state_dict`, but a run folder stands for the end of the run."""
    return net_of(read_finished(path)) if (path / "run.json").exists() else read_state_dict(path)


def read_finished(folder: Path) -> dict[str, Any]:
    """The state of a run's parts at its end. Raises `CheckpointError` where it has not ended."""
    entry, _ = Checkpoints(folder / "checkpoints", World(), keep=1).newest_good()
    if entry is None or not entry.manifest()["finished"]:
        raise CheckpointError(f"{folder}: this run has not finished yet")
    return entry.state()["parts"]


def _of_run(folder: Path) -> State:
    """The network of a run's best checkpoint: its moving average where one was kept."""
    checkpoints = Checkpoints(folder / "checkpoints", World(), keep=1)
    entry = checkpoints.best() or checkpoints.newest_good()[0]
    if entry is None:
        raise CheckpointError(f"{folder}: has no checkpoint yet")
    entry.verify()
    return net_of(checkpoint.read_tensors(entry.folder / "rank0.pt")["parts"])


def net_of(parts: Mapping[str, Any]) -> State:
    """The network in the state of a run's parts: its moving average where one was kept."""
    if parts["ema"] is not None:
        return parts["ema"]
    objective = parts["objective"].items()
    return {k.removeprefix("net."): v for k, v in objective if k.startswith("net.")}


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return compressed.expand(load_file(path))
        with torch.serialization.safe_globals([Namespace]):  # timm and ConvNeXt save `args` so
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can fail a parser in any way
        if not isinstance(error, pickle.UnpicklingError) or "GLOBAL" not in str(error):
            raise _damaged(path, error) from error
        raise CheckpointError(
            f"{path}: holds Python objects beside tensors, and reading those could run code; "
            "save the state_dict alone, as .safetensors or with torch.save"
        ) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return CheckpointError(f"{path}: damaged, or not a file of weights ({reason})")


def _wrapped(saved: Any) -> Any:
    if not isinstance(saved, Mapping):
        return None
    values = (cast(Mapping[Any, Any], saved).get(name) for name in WRAPPERS)
    return next((value for value in values if isinstance(value, Mapping)), None)


@dataclass(frozen=True)
class LoadReport:
    """What loading left out, by the model's names."""

    missing: list[str]
    """In the model only: keep the values they had."""
    unexpected: list[str]
    """In the file only."""
    mismatched: dict[str, tuple[torch.Size, torch.Size]]
    """In both, with the shapes (file, model): keep the values they had."""

    def lines(self) -> list[str]:
        """One sentence for each kind of difference; none where everything was loaded."""
        shapes = [
            f"{name} ({_shape(theirs)} in the file, {_shape(ours)} in the model)"
            for name, (theirs, ours) in self.mismatched.items()
        ]
        kinds = {
            "left as initialised, of another shape": shapes,
            "left as initialised, not in the file": self.missing,
            "ignored, not in the model": self.unexpected,
        }
        return [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names]


def load_weights(net: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """Copy what fits into `net`, in place.

    Where more fits that way, timm's own functions map the names and layouts of a model's official
    release and resize position embeddings. A head for another number of classes is left out. Raises
    CheckpointError where nothing fits.
    """
    own = net.state_dict()
    state = max((dict(state), _to_timm(net, state)), key=lambda named: len(_fitting(named, own)))
    fitting = _fitting(state, own)
    if not fitting:
        raise CheckpointError(
            f"these weights belong to another model: none of their {len(state)} tensors "
            f"({_listed(state, 3)}) fits into {type(net).__name__} ({_listed(own, 3)})"
        )
    net.load_state_dict(fitting, strict=False)
    return LoadReport(
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        mismatched={
            name: (value.shape, own[name].shape)
            for name, value in state.items()
            if name in own and name not in fitting
        },
    )


def load_exactly(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load every tensor of `net`, in place. Raises `CheckpointError` naming what does not fit."""
    own = net.state_dict()
    shapes = [
        f"{name} is {_shape(state[name].shape)} there and {_shape(own[name].shape)} here"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    kinds = {"of another shape": shapes, "not there": missing, "not here": unexpected}
    problems = [f"{kind}: {_listed(names, 3)}" for kind, names in kinds.items() if names]
    if problems:
        raise CheckpointError("\n".join([f"{source}: belongs to another network", *problems]))
    net.load_state_dict(state)


def _fitting(state: State, own: State) -> State:
    return {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}


def _to_timm(net: nn.Module, state: Mapping[str, Tensor]) -> State:
    """`state` through the checkpoint filter of the model's module in timm, where it has one."""
    module = sys.modules[_home(net)]
    mapping: Callable[..., State] | None = getattr(module, "checkpoint_filter_fn", None)
    if mapping is None:
        return dict(state)
    options = {"adapt_layer_scale": True}  # DeiT III's names; ViT's filter asks for it
    taken = inspect.signature(mapping).parameters
    try:
        return dict(mapping(dict(state), net, **{k: v for k, v in options.items() if k in taken}))
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError):
        return dict(state)  # the weights of another model, which the filter was not made for


def _home(net: nn.Module) -> str:
    """The module that registers the model, which need not be that of its class (DeiT III, ViT)."""
    facts = cast(dict[str, Any], getattr(net, "pretrained_cfg", None) or {})
    name = facts.get("architecture")
    return model_entrypoint(name).__module__ if name else type(net).__module__


def _listed(names: Iterable[str], shown: int = NAMES_SHOWN) -> str:
    names = list(names)
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _shape(size: torch.Size) -> str:
    return "×".join(map(str, size)) or "scalar"
