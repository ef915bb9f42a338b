"""Deep Incubation from start to end on scikit-learn's digits.

    graftwerk run incubate_digits --jobs 2

Costs two and a half minutes of two CPU cores: a meta network of four blocks, four modules of two
blocks inside it, two at a time, their assembly, and its fine-tuning. With seed 0 the meta network
reaches 88.6 %, the modules inside it 84 to 90 %, the assembled network 44 %, and 95.3 % after
fine-tuning.
"""

from __future__ import annotations

from graftwerk.data.config import Augment, Digits
from graftwerk.incubation import Incubation, Phases, Plan, incubate
from graftwerk.models.config import Model
from graftwerk.objectives.config import Supervised
from graftwerk.optim.config import Cosine, Optim
from graftwerk.recipes import recipe
from graftwerk.run import BatchSize, Evaluate, Run, Save


@recipe
def incubate_digits() -> Incubation:
    """Modular training of a small ViT on handwritten digits: the whole graph in minutes."""
    whole = Run(
        name="incubate_digits",
        epochs=10,
        objective=Supervised(smoothing=0.1),
        model=Model(
            name="vit_tiny_patch16_224",
            depths=(8,),
            args={"patch_size": 4, "embed_dim": 64, "num_heads": 4},
        ),
        data=Digits(),
        augment=Augment(size=16, crop="pad", padding=2, hflip=0.0),
        evaluate=Evaluate(every=5, crop=1.0, batch=256),
        batch=BatchSize(size=64),
        optim=Optim(name="adamw", lr=2e-3, weight_decay=0.05),
        schedule=Cosine(warmup_epochs=2, end=0.01),
        save=Save(every="5 epochs"),
    )
    phases = Phases(
        meta={"epochs": 20},
        module={},
        finetune={"epochs": 16, "optim.lr": 1e-3, "optim.clip": 1.0, "schedule.warmup_epochs": 0},
    )
    plan = Plan(divide=(2, 2, 2, 2), meta=(1, 1, 1, 1))
    return Incubation.planned(plan, lambda plan: incubate(whole, plan, phases))
