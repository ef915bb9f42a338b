"""The checkpoints of Deep Incubation's own code: ``finished_checkpoint.pth``."""

from __future__ import annotations

from typing import Any

from torch import nn

from graftwerk.errors import ConfigError
from graftwerk.models.division import Divide, Division
from graftwerk.models.stages import STAGES, VIT, block_patterns, layout


def published(net: nn.Module, divide: Divide) -> dict[str, Any]:
    """What their `--meta_model`, `--incubation_models` and `--finetune` load.

    `model_stages` holds the modules' tensors under names of their own; `model` all of them under
    the network's names, and once more under ``stages.K.``, as one state of their network has them.
    Raises `ConfigError` where the network is no ViT, or not so divided.
    """
    if block_patterns(net) != [VIT]:
        raise ConfigError([f"--divide: the published format is for ViTs, not {type(net).__name__}"])
    places, state = layout(net), net.state_dict()
    stages = places.split(state, Division.of(divide, places.depths, key="--divide"))
    twice = {
        f"stages.{number}.{name}": tensor
        for number, stage in enumerate(stages)
        for name, tensor in stage.items()
    }
    trainer: dict[str, Any] = {"optimizer": {}, "lr_scheduler": {}, "scaler": {}}
    return {"model": state | twice, STAGES: stages, "epoch": "finished", **trainer}
