from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finished import same_batches
from graftwerk.axes import Batch
from graftwerk.data.config import Augment, Folder
from graftwerk.data.loader import Augmented, Sample, eval_batches
from graftwerk.data.order import Order
from graftwerk.data.source import Source
from graftwerk.data.transforms import Pixels, Transform, eval_transform, train_transform
from graftwerk.errors import DataError
from loading import batches_of, damage

DATA = Folder.model_validate({"path": "."})
HEAVY = Augment(size=16, policy="rand-m9-mstd0.5-inc1", erase=0.5, interpolation="random")


def train(source: Source, order: Order, **changes: Any) -> list[Batch]:
    return list(batches_of(source, train_transform(HEAVY, DATA), order, **changes))


def evaluate(source: Source, **changes: Any) -> list[Batch]:
    options: dict[str, Any] = {
        "rank": 0,
        "world_size": 1,
        "batch": 4,
        "workers": 0,
        "on_error": "fail",
        "pin_memory": False,
    }
    return list(eval_batches(source, plain(), **{**options, **changes}))


def image_of(sample: Sample) -> torch.Tensor:
    assert sample.pixels is not None
    return sample.pixels.image_chw


def plain() -> Transform:
    return eval_transform(16, 1.0, "squash", "bicubic", DATA)


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert same_batches(a, b)


def test_batches_follow_the_order_with_their_own_images_and_classes(images: Source):
    order = Order(len(images), 6, seed=5, last="wrap")
    batches = train(images, order)
    assert len(batches) == 8
    for step, batch in enumerate(batches):
        assert batch.images_nchw.shape == (6, 3, 16, 16)
        assert batch.indices.tolist() == order.batch(step)[:, 1].tolist()
        assert batch.targets.tolist() == [images.read(i)[1] for i in batch.indices.tolist()]
        assert not batch.problems


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_bits(images: Source, workers: int):
    damage(images, 3, 4, 17)
    order = Order(len(images), 6, seed=5, repeats=2, last="wrap")
    alone = train(images, order, on_error="skip", micro=3)
    assert_equal(train(images, order, on_error="skip", micro=3, workers=workers), alone)
    assert_equal(
        evaluate(images, on_error="skip", workers=workers), evaluate(images, on_error="skip")
    )


@pytest.mark.parametrize("start", [1, 3, 7])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(
    images: Source, start: int, workers: int
):
    order = Order(len(images), 6, seed=5, last="wrap")
    assert_equal(
        train(images, order, start_step=start, workers=workers), train(images, order)[start:]
    )


def test_two_ranks_see_the_images_of_one(images: Source):
    order = Order(len(images), 8, seed=5)
    for step, whole in enumerate(train(images, order)):
        seen: dict[int, torch.Tensor] = {}
        for rank in (0, 1):
            first, second = train(
                images,
                order,
                rank=rank,
                world_size=2,
                micro=2,
                start_step=step,
                total_steps=step + 1,
            )
            for batch in (first, second):
                seen |= dict(zip(batch.indices.tolist(), batch.images_nchw, strict=True))
        assert len(seen) == 8
        for index, image in zip(whole.indices.tolist(), whole.images_nchw, strict=True):
            assert torch.equal(seen[index], image)


def test_an_image_is_augmented_anew_in_every_epoch_and_repeat(images: Source):
    dataset = Augmented(images, train_transform(HEAVY, DATA), seed=5, replace=False)
    keys = [(0, 7, 0), (1, 7, 0), (0, 7, 1), (0, 8, 0)]
    tensors = [image_of(dataset[key]) for key in keys]
    again = [image_of(dataset[key]) for key in keys]
    assert len({tensor.numpy().tobytes() for tensor in tensors}) == 4
    assert all(map(torch.equal, tensors, again))


def test_repeated_augmentation_gives_every_image_in_different_crops(images: Source):
    """Hoffer et al. 2020: each of a batch's images `repeats` times; on one process as on three."""
    order = Order(len(images), 6, seed=5, repeats=3)
    alone = [(i, x) for b in train(images, order, total_steps=3) for i, x in _rows(b)]
    assert [i for i, _ in alone] == [
        i for i in dict.fromkeys(i for i, _ in alone) for _ in range(3)
    ]
    assert len({i for i, _ in alone}) == 6
    assert len({x.numpy().tobytes() for _, x in alone}) == len(alone)
    shares = [
        [_rows(b) for b in train(images, order, rank=rank, world_size=3, micro=2, total_steps=3)]
        for rank in range(3)
    ]
    for step, batches in enumerate(zip(*shares, strict=True)):
        for batch in batches:
            assert len({i for i, _ in batch}) == 2
        together = [row for rows in zip(*batches, strict=True) for row in rows]
        for (i, x), (j, y) in zip(together, alone[6 * step :], strict=False):
            assert i == j
            assert torch.equal(x, y)


def _rows(batch: Batch) -> list[tuple[int, torch.Tensor]]:
    return list(zip(batch.indices.tolist(), batch.images_nchw, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_left_alone(images: Source, workers: int):
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)

    seed()
    expected = [draw() for _ in range(6)]
    seed()
    drawn: list[tuple[float, float, float]] = []
    order = Order(len(images), 8, seed=5)
    batches = batches_of(
        images, train_transform(HEAVY, DATA), order, workers=workers, total_steps=4
    )
    for _ in batches:
        drawn.append(draw())
    evaluate(images, workers=workers)
    drawn += [draw(), draw()]
    assert drawn == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_training_by_name(images: Source, workers: int):
    damage(images, 3)
    with pytest.raises(DataError) as error:
        train(images, Order(len(images), 6, seed=5, last="wrap"), workers=workers)
    what, advice = str(error.value).splitlines()
    assert what.startswith(f"{images.name(3)}: is no readable image (")
    assert advice == "mend or remove it, or set data.on_error=skip to go on without it"


def test_an_unreadable_image_is_replaced_by_the_next_one_and_named(images: Source):
    damage(images, 21, 0)
    order = Order(len(images), 11, seed=5)
    clean = [index if index not in (21, 0) else 1 for index in order.batch(0)[:, 1].tolist()]
    clean += [index if index not in (21, 0) else 1 for index in order.batch(1)[:, 1].tolist()]
    batches = train(images, order, on_error="skip", total_steps=2)
    assert [index for batch in batches for index in batch.indices.tolist()] == clean
    for batch in batches:
        assert batch.targets.tolist() == [images.read(i)[1] for i in batch.indices.tolist()]
    named = [problem.split(": ")[0] for batch in batches for problem in batch.problems]
    assert sorted(named) == sorted([images.name(21), images.name(0), images.name(0)])


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_vanish_all_at_once_stop_training(images: Source, workers: int):
    for position in range(len(images)):
        Path(images.name(position)).unlink()
    with pytest.raises(
        DataError, match=r"\d\d\.jpg: can't be read \(No such file[^\n]*\nand \d+ more"
    ):
        train(images, Order(len(images), 4, seed=5), on_error="skip", workers=workers)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 30])
def test_evaluation_sees_every_image_once_over_all_ranks(images: Source, world_size: int):
    shares = [evaluate(images, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = [
        (int(i), int(t)) for share in shares for b in share for i, t in zip(b[2], b[1], strict=True)
    ]
    assert sorted(seen) == [(i, images.read(i)[1]) for i in range(len(images))]
    sizes = [sum(len(batch.indices) for batch in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_evaluation_images_are_the_transformed_ones(images: Source):
    for batch in evaluate(images):
        for index, image in zip(batch.indices.tolist(), batch.images_nchw, strict=True):
            assert torch.equal(image, plain()(Image.open(images.name(index))).image_chw)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_stops_at_an_unreadable_image(images: Source, workers: int):
    damage(images, 3)
    with pytest.raises(DataError, match=r"03\.jpg: is no readable image .*\nmend or remove it"):
        evaluate(images, workers=workers)


@pytest.mark.parametrize(
    "unreadable", [[3], [0, 1, 2, 3], [20, 21], [4, 5, 6, 7, 20, 21], list(range(1, 22))]
)
def test_evaluation_leaves_unreadable_images_out_and_names_each(
    images: Source, unreadable: list[int]
):
    """Batches of four: among these are whole unreadable batches first, last and between."""
    damage(images, *unreadable)
    batches = evaluate(images, on_error="skip")
    assert all(len(batch.images_nchw) == len(batch.indices) > 0 for batch in batches)
    seen = [index for batch in batches for index in batch.indices.tolist()]
    assert seen == [index for index in range(22) if index not in unreadable]
    named = [problem.split(": ")[0] for batch in batches for problem in batch.problems]
    assert sorted(named) == sorted(images.name(index) for index in unreadable)


def test_evaluation_of_nothing_readable_stops(images: Source):
    damage(images, *range(22))
    with pytest.raises(DataError, match=r"00\.jpg: is no readable image .*\nand 21 more images"):
        evaluate(images, on_error="skip")


def test_a_bug_in_a_transform_is_not_taken_for_a_bad_image(images: Source):
    def broken(raw: object) -> Pixels:
        raise ZeroDivisionError(f"with {type(raw)}")

    with pytest.raises(ZeroDivisionError):
        Augmented(images, broken, seed=0, replace=True)[(0, 0, 0)]


def test_the_dataset_travels_to_spawned_processes(images: Source):
    dataset = Augmented(images, train_transform(HEAVY, DATA), seed=5, replace=False)
    sample, again = dataset[(0, 1, 0)], pickle.loads(pickle.dumps(dataset))[(0, 1, 0)]
    assert torch.equal(image_of(sample), image_of(again))
