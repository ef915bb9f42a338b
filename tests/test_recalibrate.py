"""BatchNorm's statistics under the average of replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import doubles
from graftwerk.axes import World
from graftwerk.recalibrate import recalibrated
from graftwerk.run import Run
from running import configured, differences, newest_state, train_here
from workers import together

BATCHES = 3
KEYS: dict[str, Any] = {
    "model__name": "test_resnet",
    "model__drop_path": 0.0,
    "sync": "gossip",
    "augment__mixup": 0,
}


def run_of(folder: Path, **keys: Any) -> Run:
    return configured(doubles.tiny(), folder, **KEYS, **keys)


def statistics(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.named_buffers() if "running" in name}


def test_they_are_those_of_a_pass_in_training_mode(tmp_path: Path) -> None:
    """Over the batches of both workers, with the mean of their parameters.

    Images as they are: workers are threads here, which share the random numbers of transforms.
    """
    plain = {"augment__crop": "none", "augment__hflip": 0, "augment__policy": None}
    run = run_of(tmp_path, sync__recalibrate=BATCHES, **plain)

    def work(world: World) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
        parts = run.build(world)
        net = parts.objective.net
        parts.sync.attach(parts.model, parts.optimizer)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * world.rank)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        with parts.sync.averaged(net) as averaged, recalibrated(parts, averaged):
            found = statistics(averaged)
        assert differences(dict(net.state_dict()), before) == []
        return (
            before,
            found,
            [parts.to_device(batch).images_nchw for batch in parts.first_batches(BATCHES)],
        )

    (first, found, some), (second, same, others) = together(2, work)
    net = run.build(World()).objective.net
    net.load_state_dict({name: (first[name] + second[name]) / 2 for name in first})
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
    net.train()
    with torch.no_grad():
        for images in (*some, *others):
            net(images)
    expected = statistics(net)
    assert len(expected) > 4
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
        assert torch.equal(found[name], same[name])
        assert not torch.allclose(found[name], first[name], rtol=1e-2)


def test_training_is_not_touched(tmp_path: Path) -> None:
    """The last checkpoint has the same bits, whether or not evaluations took statistics anew."""
    states: list[tuple[Any, Any]] = []
    for count in (0, BATCHES):
        run = run_of(tmp_path, sync__recalibrate=count, steps=4, save__every="2 steps")
        train_here(run, tmp_path)
        state = newest_state(run.folder)[1]
        states.append((state["parts"], state["ranks"]))
    assert differences(states[0], states[1]) == []
