from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwerk.axes import Batch
from graftwerk.config import load
from graftwerk.errors import CheckpointError, ConfigError
from graftwerk.models.config import Model
from graftwerk.models.division import Divide, Division
from graftwerk.models.factory import build_model
from graftwerk.models.stages import STAGES, layout
from graftwerk.objectives.config import Incubate, Objective
from graftwerk.objectives.incubate import digest
from graftwerk.optim.config import Optim
from graftwerk.optim.groups import group_parameters

VIT: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "patch_size": 8}
RESNET: dict[str, Any] = {"channels": [4, 4, 8, 8], "stem_width": 4}


def vit(depth: int, **keys: Any) -> Model:
    return Model(name="vit_tiny_patch16_224", depths=(depth,), args=VIT, **keys)


def resnet(*depths: int, **keys: Any) -> Model:
    return Model(name="resnet18", depths=depths, args=RESNET, **keys)


def build(model: Model) -> nn.Module:
    size = None if model.name.startswith("resnet") else (16, 16)
    return build_model(model, num_classes=5, in_chans=1, img_size=size)


def saved(folder: Path, model: Model) -> tuple[Path, dict[str, Tensor]]:
    """A meta network with statistics of its own, in a file."""
    net = build(model)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)  # pyright: ignore[reportArgumentType]
    torch.save(net.state_dict(), folder / "meta.pth")
    return folder / "meta.pth", net.state_dict()


def objective(meta: Path, model: Model, divide: Divide, index: int, **keys: Any) -> Any:
    node = Incubate(divide=divide, meta_divide=(1,) * len(divide), index=index, meta=meta, **keys)
    return node.build(build(node.network(model)), channels=1, sizes={})


def batch(n: int = 8, size: int = 16) -> Batch:
    return Batch(torch.randn(n, 1, size, size), torch.randint(5, (n,)), torch.arange(n))


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def train(built: Any, steps: int = 2) -> None:
    size = 32 if "layer1.0.conv1.weight" in built.net.state_dict() else 16
    optimizer = torch.optim.AdamW(group_parameters(built, Optim(name="adamw")), lr=1e-2)
    built.train()
    for _ in range(steps):
        built(batch(size=size)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_frozen_part_is_the_meta_network(tmp_path: Path) -> None:
    path, meta = saved(tmp_path, vit(3))
    built = objective(path, vit(6), (2, 2, 2), 1)
    state = built.net.state_dict()
    assert len({name.split(".")[1] for name in state if name.startswith("blocks")}) == 4
    for name, tensor in state.items():
        block = int(name.split(".")[1]) if name.startswith("blocks.") else None
        theirs = {None: block, 0: 0, 3: 2}.get(block)
        source = name if block is None else name.replace(f"blocks.{block}", f"blocks.{theirs}")
        same = source in meta and torch.equal(tensor, meta[source])
        assert same == (block not in (1, 2)) or tensor.ndim == 1, name


@pytest.mark.parametrize("index", [0, 1, 2])
def test_only_the_module_changes(tmp_path: Path, index: int) -> None:
    path, _ = saved(tmp_path, vit(3))
    built = objective(path, vit(6, drop_path=0.2), (2, 2, 2), index)
    before = snapshot(built.net)
    train(built)
    changed = {n for n, t in built.net.state_dict().items() if not torch.equal(t, before[n])}
    trained = {n for n, p in built.net.named_parameters() if p.requires_grad}
    assert changed == trained
    ends = {0: ("cls_token", "pos_embed", "patch_embed"), 2: ("norm", "head")}
    blocks = tuple(f"blocks.{number}." for number in range(index, index + 2))
    assert all(name.startswith((*blocks, *ends.get(index, ()))) for name in trained)


def test_shifted_windows_stay_shifted(tmp_path: Path) -> None:
    def swin(*depths: int) -> Model:
        args = {"embed_dim": 8, "num_heads": [1, 1, 1, 1], "window_size": 2}
        return Model(name="swin_tiny_patch4_window7_224", depths=depths, args=args)

    def third_stage(*meta: int) -> Any:
        """Of the network that trains the second of two modules of two blocks."""
        path = tmp_path / "meta.pth"
        small = build_model(swin(1, 1, sum(meta), 1), num_classes=5, in_chans=1, img_size=(64, 64))
        torch.save(small.state_dict(), path)
        node = Incubate(divide=(1, 1, 2, 2, 1), meta_divide=(1, 1, *meta, 1), index=3, meta=path)
        net = node.network(swin(1, 1, 4, 1))
        large = build_model(net, num_classes=5, in_chans=1, img_size=(64, 64))
        return node.build(large, channels=1, sizes={}).net.get_submodule("layers.2")

    with pytest.raises(ConfigError, match=r"module 3 .* \(1 blocks are .*\) than .* \(2\)"):
        third_stage(1, 1)
    shifts = [block.shift_size for block in third_stage(2, 1).blocks]
    assert shifts[2:] == [(0, 0), (1, 1)]


@pytest.mark.parametrize("norm", ["eval", "batch"])
def test_frozen_statistics_stay_and_are_used_as_asked(tmp_path: Path, norm: str) -> None:
    path, meta = saved(tmp_path, resnet(1, 1, 1, 1))
    built = objective(path, resnet(1, 2, 2, 1), (1, 2, 2, 1), 1, frozen_norm=norm)
    train(built)
    state = built.net.state_dict()
    frozen = [name for name in meta if not name.startswith("layer2")]
    assert all(torch.equal(state[name], meta[name]) for name in frozen)
    assert state["layer2.1.bn1.num_batches_tracked"] == 2
    outputs: list[Tensor] = []
    built.net.bn1.register_forward_hook(lambda *found: outputs.append(found[2]))
    built(batch(32, 32))
    built.eval()
    built(batch(32, 32))
    unit = [(out.mean((0, 2, 3)).abs() < 1e-3).all().item() for out in outputs]
    assert unit == [False, False] if norm == "eval" else [True, False]


@pytest.mark.parametrize("drop", [True, False])
def test_drop_path_of_the_frozen_part_is_an_option(tmp_path: Path, drop: bool) -> None:
    path, _ = saved(tmp_path, vit(3))
    built = objective(path, vit(6, drop_path=0.5), (2, 2, 2), 1, frozen_drop=drop).train()
    modes = {number: built.net.blocks[number].drop_path1.training for number in range(4)}
    assert modes == {0: drop, 1: True, 2: True, 3: drop}
    assert not any(module.training for module in built.eval().modules())


def test_nothing_is_kept_of_what_comes_before_the_module(tmp_path: Path) -> None:
    """Nor a gradient of a frozen parameter, although gradients flow through those behind."""
    path, _ = saved(tmp_path, vit(3))
    built = objective(path, vit(6), (2, 2, 2), 1)
    graphs: list[bool] = []
    for block in built.net.blocks:
        block.register_forward_hook(lambda *found: graphs.append(found[2].requires_grad))
    built.train()(batch()).loss.backward()
    assert graphs == [False, True, True, True]
    for parameter in built.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad


def test_the_optimizer_sees_the_module_alone(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, vit(3))
    built = objective(path, vit(6), (2, 2, 2), 0)
    groups = {g["decays"]: g["param_names"] for g in group_parameters(built, Optim())}
    trained = [*groups[True], *groups[False]]
    assert not any(name.startswith(("net.head", "net.norm")) for name in trained)
    assert {"net.cls_token", "net.pos_embed"} <= set(groups[False])


def test_another_meta_network_is_noticed(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, vit(3))
    one = objective(path, vit(6), (2, 2, 2), 1)
    one.load_state_dict(one.state_dict())
    path, meta = saved(tmp_path, vit(3))
    with pytest.raises(CheckpointError, match=r"meta.pth is not the meta network that this run be"):
        objective(path, vit(6), (2, 2, 2), 1).load_state_dict(one.state_dict())
    assert digest(meta) == digest(dict(reversed(meta.items())))


def test_a_published_checkpoint_is_a_meta_network(tmp_path: Path) -> None:
    net = build(vit(2))
    division = Division.of((1, 1), (2,), key="")
    stages = layout(net).split(net.state_dict(), division)
    torch.save({"model": {}, STAGES: stages, "epoch": "finished"}, tmp_path / "finished.pth")
    built = objective(tmp_path / "finished.pth", vit(4), (2, 2), 0)
    assert torch.equal(built.net.blocks[2].mlp.fc1.weight, net.blocks[1].mlp.fc1.weight)  # pyright: ignore


@pytest.mark.parametrize(
    ("model", "depths", "problem"),
    [
        (vit(4), (2, 2, 2), r"has 4 blocks, and objective.meta_divide=\[1,1,1\] is another"),
        (
            Model(name="vit_tiny_patch16_224", depths=(3,), args=VIT | {"embed_dim": 64}),
            (2, 2, 2),
            r"of another shape: cls_token is 1×1×64 there and 1×1×32 here, .* more",
        ),
    ],
)
def test_a_meta_network_that_does_not_fit(
    tmp_path: Path, model: Model, depths: Divide, problem: str
) -> None:
    path, _ = saved(tmp_path, model)
    with pytest.raises(CheckpointError, match=r"meta.pth: (.|\n)*" + problem):
        objective(path, vit(6), depths, 1)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"index": 3}, "index should be less than 3, the number of modules"),
        ({"meta_divide": [1, 1]}, "meta_divide needs a number for each of divide"),
        ({"divide": [2, 0, 2]}, "should be at least 1"),
        ({"divide": []}, "divide"),
    ],
)
def test_settings_that_contradict_each_other(keys: dict[str, Any], problem: str) -> None:
    good = {"divide": [2, 2, 2], "meta_divide": [1, 1, 1], "index": 0, "meta": "m"}
    with pytest.raises(ConfigError, match=problem):
        load(Objective, {"kind": "incubate"} | good | keys)


def test_a_division_that_does_not_sum() -> None:
    node = Incubate(divide=(2, 2, 3), meta_divide=(1, 1, 1), index=0, meta=Path("m"))
    with pytest.raises(ConfigError, match=r"objective.divide: \[2,2,3\] are 7 blocks in 3 modules"):
        node.network(vit(6))
    with pytest.raises(ConfigError, match=r"the network has 12 blocks"):
        node.network(Model(name="vit_tiny_patch16_224"))
