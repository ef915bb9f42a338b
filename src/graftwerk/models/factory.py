"""Networks by timm's names, with first weights; nothing is ever downloaded."""

from __future__ import annotations

import inspect
import re
from typing import Any

import timm
import torch
from torch import nn

from graftwerk.config import nearest
from graftwerk.errors import ConfigError
from graftwerk.models import cifar, small
from graftwerk.models.config import Model
from graftwerk.models.stages import cut, layout

OWN = (small, cifar)
"""Imported so that timm knows their networks."""

DEPTHS = ("depths", "layers", "depth")
"""Arguments by which timm's networks take their numbers of blocks; `depth` is that of one stage."""

SOURCES = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
"""Arguments by which timm finds weights."""


def build_model(
    model: Model, *, num_classes: int, in_chans: int, img_size: tuple[int, int] | None = None
) -> nn.Module:
    """The network on the CPU, its weights drawn from torch's global generator.

    `img_size` (rows, columns) reaches networks that are built for one size. `head_init_scale` is
    left to `scale_head`, after the weights are loaded: a head that fits would undo it.
    Raises `ConfigError` naming the key that the network can't take.
    """
    if not timm.is_model(model.name):
        hint = nearest(model.name, timm.list_models())
        raise ConfigError([f"model.name: unknown model {model.name!r}{hint}"])
    drops = {"drop_rate": model.drop, "drop_path_rate": model.drop_path}
    given: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}
    given |= {name: rate for name, rate in drops.items() if rate is not None}
    depths = depth_arguments(model)
    given |= depths
    _check_args(model, given)
    try:
        if img_size is not None and _is_built_for_one_size(model.name):
            given["img_size"] = img_size
        net = timm.create_model(model.name, pretrained=False, **(given | model.args))
    except Exception as error:
        raise ConfigError([_refusal(model, given, error)]) from error
    _describe_blocks(net, model)
    if model.depths is not None and not depths:
        cut(net, model.depths, model.drop_path)
    if model.norm_eps is not None:
        _set_eps(net, model.norm_eps)
    if model.checkpointing:
        _checkpoint_activations(net)
    return net


def own_depths(model: Model) -> tuple[int, ...]:
    """Blocks of each stage of the network, `model.depths` left aside."""
    return layout(_skeleton(model)).depths


def depth_arguments(model: Model) -> dict[str, Any]:
    """`model.depths` as the network takes them; empty where blocks must be cut away instead.

    Raises `ConfigError` where the network can't have these depths.
    """
    if model.depths is None:
        return {}
    net = _skeleton(model)
    own, depths = layout(net).depths, model.depths
    if len(own) != len(depths):
        stages = "1 stage" if len(own) == 1 else f"{len(own)} stages"
        raise ConfigError(
            [
                f"model.depths: {model.name!r} has {stages} ({', '.join(map(str, own))} blocks), "
                f"and {len(depths)} {'depth is' if len(depths) == 1 else 'depths are'} given"
            ]
        )
    parameters = inspect.signature(type(net).__init__).parameters
    argument = next((name for name in DEPTHS if name in parameters), None)
    if argument is not None:
        return {argument: depths[0] if argument == "depth" else list(depths)}
    if any(wanted > there for wanted, there in zip(depths, own, strict=True)):
        raise ConfigError(
            [
                f"model.depths: {model.name!r} has {', '.join(map(str, own))} blocks, and blocks "
                "can only be taken away"
            ]
        )
    return {}


def _skeleton(model: Model) -> nn.Module:
    """The network with shapes and no numbers."""
    try:
        with torch.device("meta"):
            net = timm.create_model(model.name, **model.args)
    except Exception as error:
        raise ConfigError([_refusal(model, {}, error)]) from error
    _describe_blocks(net, model)
    return net


def _describe_blocks(net: nn.Module, model: Model) -> None:
    """`model.blocks` takes the place of what timm's networks say of themselves."""
    if model.blocks is None:
        return
    try:
        groups = re.compile(model.blocks).groups
    except re.error as error:
        raise ConfigError([f"model.blocks: no regular expression ({error})"]) from None
    if groups not in (1, 2):
        raise ConfigError(
            [f"model.blocks: needs one group (block) or two (stage, block), and has {groups}"]
        )
    groups_of_net = {"stem": "", "blocks": model.blocks}

    def group_matcher(coarse: bool = False) -> dict[str, str]:
        del coarse
        return groups_of_net

    net.group_matcher = group_matcher  # pyright: ignore[reportArgumentType]


def _set_eps(net: nn.Module, eps: float) -> None:
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps


def count_parameters(net: nn.Module) -> int:
    """Numbers in all parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in net.parameters())


@torch.no_grad()
def scale_head(net: nn.Module, scale: float) -> None:
    """Multiply weight and bias of the classifier (ConvNeXt's `head_init_scale`)."""
    if scale == 1:
        return
    classifiers = net.get_classifier()  # pyright: ignore[reportCallIssue]
    heads = nn.ModuleList(classifiers if isinstance(classifiers, tuple) else [classifiers])
    parameters = list(heads.parameters())
    if not parameters:
        raise ConfigError([f"model.head_init_scale: {type(net).__name__} has no head to scale"])
    for parameter in parameters:
        parameter.mul_(scale)


def _is_built_for_one_size(name: str) -> bool:
    facts = timm.get_pretrained_cfg(name)
    return facts is not None and facts.fixed_input_size


def _check_args(model: Model, given: dict[str, Any]) -> None:
    """Arguments that other keys set may be repeated, as an export's are, but not contradicted."""
    problems = [
        f"model.args: {name}={model.args[name]!r} contradicts {value!r}, which follows from "
        "other keys"
        for name, value in given.items()
        if model.args.get(name, value) != value
    ]
    problems += [
        f"model.args: {name!r} is not passed on; set model.pretrained to a local file"
        for name in SOURCES & model.args.keys()
    ]
    if problems:
        raise ConfigError(problems)


def _refusal(model: Model, given: dict[str, Any], error: Exception) -> str:
    keys = {"drop_rate": "drop", "drop_path_rate": "drop_path"}
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown is not None and unknown[1] in keys.keys() - model.args.keys():
        return (
            f"model.{keys[unknown[1]]}: {model.name!r} has no {unknown[1]}; leave it unset (null)"
        )
    if unknown is not None and unknown[1] in model.args:
        return f"model.args: {model.name!r} takes no argument {unknown[1]!r}"
    if model.args:
        return f"model.args: {model.name!r} can't be built with {model.args} ({error})"
    return f"model.name: {model.name!r} can't be built with {given} ({error})"


def _checkpoint_activations(net: nn.Module) -> None:
    try:
        net.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]
    except (AssertionError, AttributeError):
        name = type(net).__name__
        raise ConfigError(
            [f"model.checkpointing: {name} does not offer it; set it false"]
        ) from None
