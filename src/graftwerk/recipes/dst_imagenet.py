"""Sparse ResNet-50 on ImageNet (arXiv 2306.12230, section 5), outside the grids of the paper.

    graftwerk run dst_imagenet_resnet50 processes=8     # data.path=…, or IMAGENET_PYTORCH

Eight runs of 90 epochs, 8 × 32 images a step: dense, static, and six criteria with gradient growth,
density 0.2, masks updated every 800 steps, before the optimizer's step. For RigL with these
densities 75.1 % top-1 are published (dense 76.8 %). Not trained with graftwerk yet.
"""

from __future__ import annotations

from graftwerk.data.config import Augment
from graftwerk.data.presets import ImageNet
from graftwerk.grid import grid, together
from graftwerk.objectives.config import Supervised
from graftwerk.optim.config import Optim, Steps
from graftwerk.pipeline import Pipeline
from graftwerk.recipes import recipe
from graftwerk.recipes.dst import CRITERIA, base
from graftwerk.run import Evaluate


@recipe
def dst_imagenet_resnet50() -> Pipeline:
    """ResNet-50 on ImageNet at density 0.2: dense, static, and six criteria with RigL's growth."""
    run = base(
        "dst_imagenet_resnet50",
        "resnet50",
        ImageNet(),
        Augment(),
        epochs=90,
        lr=0.1,
        decay=1e-4,
        batch=256,
    )
    run = run.model_copy(
        update={
            "optim": Optim(name="momentum", lr=0.1, momentum=0.9, weight_decay=1e-4),
            "objective": Supervised(smoothing=0.1),
            "schedule": Steps(
                milestones=(1 / 3, 2 / 3, 8 / 9),
                factor=0.1,
                warmup_epochs=5,
                per="epoch",
                warmup_prefix=False,
                warmup_start=1 / 6,
            ),
            "evaluate": Evaluate(),
        }
    )
    static = {"sparsity": "static", "sparsity.density": 0.2}
    criteria = {
        "sparsity": ("dst",),
        "sparsity.density": (0.2,),
        "sparsity.every": (800,),
        "sparsity.update": ("before_step",),
    }
    dynamic = grid(run, {**criteria, "sparsity.prune": (*CRITERIA, "random")})
    return together(run, grid(run, {"+": (static,)}), dynamic)
