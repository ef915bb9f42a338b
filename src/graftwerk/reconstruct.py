"""What a masked pre-trained network makes of any image: `graftwerk reconstruct`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from graftwerk import config
from graftwerk.axes import Batch
from graftwerk.data.finish import Finish
from graftwerk.data.transforms import eval_transform
from graftwerk.errors import ConfigError, DataError, StorageError
from graftwerk.log.pictures import write_grid
from graftwerk.parts import build_net, build_objective
from graftwerk.run import Run
from graftwerk.runfolder import RunFolder


def reconstruct(
    source: Path, images: Sequence[Path], target: Path, *, mask_ratio: float | None, seed: int
) -> str:
    """Write a PNG with a row for each image: input, visible part, hidden patches rebuilt."""
    folder = RunFolder.open(source)
    run = folder.run
    if run.objective.kind != "spark":
        raise ConfigError([f"{source}: objective={run.objective.kind} rebuilds no images"])
    changes = {} if mask_ratio is None else {"objective.mask_ratio": mask_ratio}
    run = config.override(
        Run, run, {**changes, "model.pretrained": None, "objective.pretrained": None}
    )
    net, _ = build_net(run, 0)
    objective = build_objective(run, net).eval()
    entry, state = folder.checkpoint("best")
    objective.load_state_dict(state["parts"]["objective"])
    images_nchw = torch.stack([_read(image, run) for image in images])
    numbers = torch.arange(len(images)) + seed * len(images)
    finish = Finish(run.data, torch.device("cpu"))
    batch = finish(Batch(images_nchw, torch.zeros_like(numbers), numbers))
    with torch.inference_mode():
        pictures = objective.pictures(batch)
    try:
        write_grid(pictures["reconstruction"], target, mean=run.data.mean, std=run.data.std)
    except OSError as error:
        raise StorageError(f"{target}: can't be written ({error.strerror or error})") from error
    return f"{target}: input, visible part, reconstruction (step {entry.step} of {source})"


def _read(path: Path, run: Run) -> torch.Tensor:
    transform = eval_transform(
        run.eval_size,
        run.evaluate.crop,
        run.evaluate.crop_mode,
        run.augment.interpolation,
        run.data,
    )
    try:
        return transform(path.read_bytes()).image_chw
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
