from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from graftwerk.errors import ConfigError
from graftwerk.models.config import Model
from graftwerk.models.division import Division
from graftwerk.models.factory import build_model, depth_arguments, own_depths
from graftwerk.models.stages import layout

STAGED: dict[str, tuple[int, ...]] = {
    "deit_base_patch16_224": (12,),
    "vit_base_patch14_reg4_dinov2": (12,),
    "convnext_tiny": (3, 3, 9, 3),
    "swin_tiny_patch4_window7_224": (2, 2, 6, 2),
    "resnet50": (3, 4, 6, 3),
    "regnety_002": (1, 1, 4, 7),
    "efficientnet_b0": (1, 2, 2, 3, 3, 4, 1),
}


@functools.cache
def shapes(name: str, **keys: Any) -> nn.Module:
    """A network without numbers, which nobody changes."""
    with torch.device("meta"):
        return build_model(Model(name=name, **keys), num_classes=10, in_chans=3)


def halves(depths: tuple[int, ...]) -> Division:
    """Two modules of a network of one stage; else a module for each stage."""
    half = (depths[0] // 2, depths[0] - depths[0] // 2)
    return Division.of(half if len(depths) == 1 else depths, depths, key="divide")


@pytest.mark.parametrize(("name", "depths"), STAGED.items())
def test_divided_and_joined_with_no_key_left_over(name: str, depths: tuple[int, ...]) -> None:
    net = shapes(name)
    places, state = layout(net), net.state_dict()
    assert places.depths == depths
    modules = places.split(state, halves(depths))
    assert sum(map(len, modules)) == len(state)
    joined = places.join(modules)
    assert {n: t.shape for n, t in joined.items()} == {n: t.shape for n, t in state.items()}
    assert all(joined[n] is state[n] for n in state)


@pytest.mark.parametrize("name", STAGED)
def test_stem_and_head_are_at_the_ends(name: str) -> None:
    net = shapes(name)
    modules = layout(net).split(net.state_dict(), halves(STAGED[name]))
    first, *_, last = net.state_dict()
    assert first in modules[0]
    assert last in modules[-1]
    classifier = net.pretrained_cfg["classifier"]  # pyright: ignore[reportIndexIssue,reportArgumentType]
    assert f"{classifier}.weight" in modules[-1]
    assert f"{net.pretrained_cfg['first_conv']}.weight" in modules[0]  # pyright: ignore


def test_downsampling_belongs_to_the_blocks_after_it() -> None:
    for name, downsampling in (
        ("convnext_tiny", "stages.2.downsample.0.weight"),
        ("swin_tiny_patch4_window7_224", "layers.2.downsample.norm.weight"),
    ):
        net = shapes(name)
        first, second = STAGED[name][2] // 2, STAGED[name][2] - STAGED[name][2] // 2
        division = Division.of(
            (*STAGED[name][:2], first, second, STAGED[name][3]), STAGED[name], key="divide"
        )
        modules = layout(net).split(net.state_dict(), division)
        assert [downsampling in module for module in modules] == [False, False, True, False, False]


def test_blocks_are_counted_within_their_module() -> None:
    state = dict.fromkeys(shapes("regnety_002").state_dict(), 0)
    places = layout(shapes("regnety_002"))
    division = Division.of((1, 1, 4, 3, 4), (1, 1, 4, 7), key="divide")
    last = places.split(state, division)[4]
    assert {name.split(".")[1] for name in last if name.startswith("s4")} == {
        "b1",
        "b2",
        "b3",
        "b4",
    }
    assert places.depths_of(last) == (0, 0, 0, 4)


@pytest.mark.parametrize("name", ["deit_base_patch16_224", "resnet50", "regnety_002"])
def test_other_depths(name: str) -> None:
    """Names and shapes of what is left are those of the whole network."""
    depths = STAGED[name]
    small = (4,) if len(depths) == 1 else (1,) * len(depths)
    net, whole = shapes(name, depths=small), shapes(name)
    assert layout(net).depths == small
    assert own_depths(Model(name=name, depths=small)) == depths
    own, full = net.state_dict(), whole.state_dict()
    assert all(own[key].shape == full[key].shape for key in own)
    rest = layout(whole)
    assert set(own) == {
        key for key in full if rest.place(key).block < (*small, 1, 1)[rest.place(key).stage]
    }


def drop_paths(net: nn.Module) -> list[float]:
    rates = [getattr(module, "drop_prob", None) for module in net.modules()]
    return [rate for rate in rates if rate is not None]


def test_drop_path_grows_over_the_depth_that_is_left() -> None:
    vit = shapes("vit_tiny_patch16_224", depths=(5,), drop_path=0.4)
    assert drop_paths(vit) == pytest.approx([rate for j in (1, 2, 3, 4) for rate in [0.1 * j] * 2])
    cut = shapes("regnety_002", depths=(1, 1, 2, 1), drop_path=0.4)
    assert drop_paths(cut) == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(("name", "stages"), [("regnety_002", 4), ("efficientnet_b0", 7)])
def test_networks_that_were_cut_compute(name: str, stages: int) -> None:
    model = Model(name=name, depths=(1,) * stages)
    net = build_model(model, num_classes=3, in_chans=1).eval()
    assert net(torch.randn(1, 1, 64, 64)).shape == (1, 3)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.levels = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.levels(self.stem(x)))


def test_a_pattern_where_the_network_says_nothing() -> None:
    with pytest.raises(ConfigError, match=r"^model.blocks: .* Tower .*stem.weight"):
        layout(Tower())
    name = "maxvit_tiny_tf_224"
    with pytest.raises(ConfigError, match=r"model\.blocks: needs one group"):
        shapes(name, blocks=r"^stages", depths=(2, 2, 5, 2))
    with pytest.raises(ConfigError, match=r"model\.blocks: no regular expression"):
        shapes(name, blocks=r"^stages(", depths=(2, 2, 5, 2))
    net = shapes(name, blocks=r"^stages\.(\d+)\.blocks\.(\d+)")
    assert layout(net).depths == (2, 2, 5, 2)


@pytest.mark.parametrize(
    ("name", "depths", "problem"),
    [
        ("convnext_tiny", (4,), "'convnext_tiny' has 4 stages .3, 3, 9, 3 blocks., and 1 depth"),
        ("deit_base_patch16_224", (3, 3), "has 1 stage .12 blocks., and 2 depths are given"),
        ("regnety_002", (1, 1, 5, 7), "has 1, 1, 4, 7 blocks, and blocks can only be taken away"),
    ],
)
def test_depths_that_can_not_be(name: str, depths: tuple[int, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match="^model.depths: .*" + problem):
        depth_arguments(Model(name=name, depths=depths))


def test_epsilon_of_layer_norms() -> None:
    net = shapes("vit_tiny_patch16_224", norm_eps=1e-5, depths=(1,))
    found = {module.eps for module in net.modules() if isinstance(module, nn.LayerNorm)}
    assert found == {1e-5}
    with torch.device("meta"):
        theirs = timm.create_model("vit_tiny_patch16_224", depth=1)
    assert {m.eps for m in theirs.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
