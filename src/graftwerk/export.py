"""A trained network as a folder that timm loads: weights, config.json and a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import nn

from graftwerk.errors import ConfigError, StorageError
from graftwerk.files import atomic, sync_folder
from graftwerk.models import compressed
from graftwerk.models.config import Model
from graftwerk.models.factory import count_parameters, depth_arguments, own_depths

ABOUT_ARCHITECTURE = ("first_conv", "classifier", "fixed_input_size")
"""What timm's own facts say about any weights of an architecture; the rest is of theirs alone."""


def export(
    net: nn.Module,
    folder: Path,
    *,
    model: Model,
    num_classes: int,
    classes: Sequence[str],
    input_size: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    crop: float,
    crop_mode: str,
    facts: Mapping[str, Any],
    compact: bool = False,
) -> None:
    """Write `folder`, which ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads.

    With `compact` only what is not zero is stored (`models.compressed`), for `inference.load`.
    `input_size` is (channels, rows, columns), `crop` the share of the resized image that the
    centre crop keeps, `facts` what the card tells about the run. The folder appears whole or not
    at all. Raises ConfigError where it holds files already, StorageError where writing fails.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError([f"{folder}: exists already; name a new folder, or remove it first"])
    _check_depths(model)
    preprocessing = {
        "input_size": input_size,
        "mean": mean,
        "std": std,
        "interpolation": "bicubic" if interpolation == "random" else interpolation,
        "crop_pct": crop,
        "crop_mode": crop_mode,
    }
    config = _config(net, model, num_classes, classes, preprocessing)
    contents = {
        compressed.FILE if compact else "model.safetensors": _weights(net, compact),
        "config.json": json.dumps(config, indent=2).encode(),
        "README.md": _card(net, folder, config, facts, compact).encode(),
    }
    try:
        _write(folder, contents)
    except OSError as error:
        raise StorageError(f"{folder}: can't be written ({error.strerror or error})") from error


def _check_depths(model: Model) -> None:
    if model.depths is None or depth_arguments(model) or own_depths(model) == model.depths:
        return
    raise ConfigError([f"model.depths: timm can't build {model.name!r} with other depths"])


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    partial = folder.absolute().with_name(f".{folder.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, content in contents.items():
            with atomic(partial / name) as file:
                file.write(content)
        partial.replace(folder)
        sync_folder(partial.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _weights(net: nn.Module, compact: bool) -> bytes:
    """Dense, unshared copies: the format knows neither channels_last nor tied tensors."""
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in net.state_dict().items()
    }
    stored = compressed.compress(tensors) if compact else tensors
    return safetensors.torch.save(stored, metadata={"format": "pt"})


def _config(
    net: nn.Module,
    model: Model,
    num_classes: int,
    classes: Sequence[str],
    preprocessing: Mapping[str, Any],
) -> dict[str, Any]:
    """timm's layout of a model: how to build it, and how its images are prepared."""
    known = cast(dict[str, Any], net.pretrained_cfg)
    args = model.args | depth_arguments(model)
    if known["fixed_input_size"]:
        args.setdefault("img_size", preprocessing["input_size"][1:])
    return {
        "architecture": known["architecture"],
        "num_classes": num_classes,
        "num_features": net.num_features,
        "label_names": list(classes),
        "model_args": args,
        "pretrained_cfg": {
            **{name: known[name] for name in ABOUT_ARCHITECTURE if known.get(name) is not None},
            **preprocessing,
            "num_classes": num_classes,
            "custom_load": False,
        },
    }


TIMM = """\
import timm

model = timm.create_model("local-dir:{0}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"""
INFERENCE = """\
from graftwerk.inference import load

model = load("{0}")  # execution="csr": linear layers on sparse matrices"""


def _card(
    net: nn.Module,
    folder: Path,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    compact: bool,
) -> str:
    channels, rows, columns = config["pretrained_cfg"]["input_size"]
    preprocessing = config["pretrained_cfg"]
    return f"""---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, graftwerk]
---

# {facts.get("run", folder.name)}

`{config["architecture"]}` with {count_parameters(net):,} parameters, trained by graftwerk to tell
{config["num_classes"]} classes apart.

## Use

```python
{(INFERENCE if compact else TIMM).format(folder.name)}
```

Images have {channels} channels and {rows}×{columns} pixels after the transform: resized
({preprocessing["interpolation"]}), the central {preprocessing["crop_pct"]:g} cropped, normalised by
mean {list(preprocessing["mean"])} and standard deviation {list(preprocessing["std"])}.
Logit i belongs to `label_names[i]` of `config.json`.

## Facts

{_table(facts)}
"""


def _table(facts: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in _flat(facts).items()]
    return "\n".join(["| | |", "|-|-|", *rows])


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names, without what is null."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", r"\|").replace("\n", " ")
