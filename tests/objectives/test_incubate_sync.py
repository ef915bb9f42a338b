"""Several workers on one module: what they exchange is the module's alone."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket, HashStore  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.parallel import DistributedDataParallel

from graftwerk.axes import Batch, World
from graftwerk.models.config import Model
from graftwerk.models.factory import build_model
from graftwerk.objectives.config import Incubate
from workers import gossip, together

MODEL = Model(
    name="vit_tiny_patch16_224",
    depths=(6,),
    args={"patch_size": 8, "embed_dim": 16, "num_heads": 2},
)


def build(model: Model) -> nn.Module:
    return build_model(model, num_classes=5, in_chans=1, img_size=(16, 16))


def module_1(meta: Path) -> Any:
    torch.save(build(MODEL.model_copy(update={"depths": (3,)})).state_dict(), meta)
    node = Incubate(divide=(2, 2, 2), meta_divide=(1, 1, 1), index=1, meta=meta)
    return node.build(build(node.network(MODEL)), channels=1, sizes={}).train()


def batch() -> Batch:
    return Batch(torch.randn(4, 1, 16, 16), torch.randint(5, (4,)), torch.arange(4))


@pytest.fixture
def group() -> Generator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_ddp_reduces_the_gradients_of_the_module_alone(tmp_path: Path) -> None:
    objective = module_1(tmp_path / "meta.pth")
    model, counted = DistributedDataParallel(objective), [0]

    def count(bucket: GradBucket) -> Any:
        counted[0] += bucket.buffer().nbytes
        future: Any = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(None, lambda _, bucket: count(bucket))  # pyright: ignore
    model(batch()).loss.backward()
    blocks = objective.net.blocks
    assert counted[0] == sum(p.nbytes for i in (1, 2) for p in blocks[i].parameters())


def test_gossip_mixes_the_module_alone(tmp_path: Path) -> None:
    """Two workers that start apart; the frozen part is the same to the last bit."""
    objectives = [module_1(tmp_path / "meta.pth")]
    node = objectives[0]._config
    objectives.append(node.build(build(node.network(MODEL)), channels=1, sizes={}).train())
    before = [{n: p.detach().clone() for n, p in o.named_parameters()} for o in objectives]

    def work(world: World) -> dict[str, Tensor]:
        objective = objectives[world.rank]
        sync = gossip(world, objective, topology="complete")
        trained = [p for p in objective.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.0)
        sync.attach(objective, optimizer)
        for _ in range(2):
            sync.mix()
            optimizer.step()
            sync.publish()
        return dict(objective.named_parameters())

    first, second = together(2, work)
    for name, parameter in first.items():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter, second[name])
        else:
            assert torch.equal(parameter, before[0][name])
            assert torch.equal(second[name], before[0][name])
