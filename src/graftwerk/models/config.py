"""Config of the model: any timm name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from graftwerk.config import Node
from graftwerk.models.division import Blocks


class Model(Node):
    """`args` go to the model's constructor as they are; `pretrained` is a local file."""

    main = "name"

    name: str = "resnet18"
    pretrained: Path | None = None
    drop: float | None = Field(default=None, ge=0, lt=1)
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    head_init_scale: float = Field(default=1.0, gt=0)
    checkpointing: bool = False
    """Recompute activations in the backward pass, where the model offers it."""
    depths: tuple[Blocks, ...] | None = None
    """Blocks of each stage (a ViT has one stage); unset: the model's own."""
    blocks: str | None = None
    """A regular expression for the names of blocks, with a group for the block's number and one
    before it for the stage's; needed where timm's model doesn't describe itself."""
    norm_eps: float | None = Field(default=None, gt=0)
    """ε of layer norms; unset: the model's own."""
    modules: tuple[Path, ...] = ()
    """The network is assembled of these: runs of objective=incubate in the order of their modules,
    or checkpoints of Deep Incubation (docs/incubation.md)."""
    args: dict[str, Any] = Field(default_factory=dict)
