from __future__ import annotations

import math
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from graftwerk.log.tensorboard import TensorBoard


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_values_come_back_under_grouped_tags(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path, {"name": "x"}, resumed_at=0)
    sink.record(5, 0, {"loss": 0.25, "cpu_percent": 50.0})
    sink.record(10, 0, {"loss": math.nan, "cpu_percent": 75.0})
    sink.row(10, 1, {"train_loss": 0.5, "eval_top1": 0.75, "lr": 0.125})
    sink.close("finished")
    assert scalars(tmp_path, "train/loss")[0] == (5, 0.25)
    assert math.isnan(scalars(tmp_path, "train/loss")[1][1])
    assert scalars(tmp_path, "system/cpu_percent") == [(5, 50.0), (10, 75.0)]
    assert scalars(tmp_path, "eval/top1") == [(10, 0.75)]
    assert scalars(tmp_path, "epoch/train_loss") == [(10, 0.5)]


def test_a_resume_hides_the_steps_that_it_repeats(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, {}, resumed_at=0)
    for step in (5, 10, 15, 20):
        first.record(step, 0, {"loss": 1.0})
    first.close("killed")
    second = TensorBoard(tmp_path, {}, resumed_at=10)
    second.record(15, 0, {"loss": 2.0})
    second.close("finished")
    assert scalars(tmp_path, "train/loss") == [(5, 1.0), (10, 1.0), (15, 2.0)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_ends_a_file_and_the_next_evaluation_begins_another(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path, {}, resumed_at=0)
    sink.row(1, 1, {"eval_top1": 0.25})
    (file,) = (tmp_path / "tensorboard").iterdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 9, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            sink.row(2, 2, {"eval_top1": 0.5})
        sink.record(3, 2, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    time.sleep(1.1)  # TensorBoard reads files in the order of their seconds
    sink.row(4, 4, {"eval_top1": 0.75})
    sink.record(5, 4, {"loss": 0.5})
    sink.close("finished")
    assert scalars(tmp_path, "eval/top1") == [(1, 0.25), (4, 0.75)]
    assert scalars(tmp_path, "train/loss") == [(5, 0.5)]


def test_a_figure_comes_back(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "masks.png")
    sink = TensorBoard(tmp_path, {}, resumed_at=0)
    sink.figure("masks", tmp_path / "masks.png", 4)
    sink.close("finished")
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0})
    events.Reload()
    (image,) = events.Images("masks")
    assert (image.step, image.height, image.width) == (4, 9, 7)
