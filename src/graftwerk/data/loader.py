"""Batches for training and evaluation: the same bits with any number of loader processes."""

from __future__ import annotations

import itertools
import math
import os
import random
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from graftwerk.axes import Batch, Encoded, Erased
from graftwerk.data.order import Key, Order
from graftwerk.data.source import Source
from graftwerk.data.transforms import Cropped, Pixels, Transform
from graftwerk.data.turns import Steps, at_once, in_turns
from graftwerk.errors import DataError

OnError = Literal["fail", "skip"]
MAX_UNREADABLE = 100
"""So many unreadable images in a row are no accident but a lost disk."""
TOGETHER = 32
"""Images that are worked on in turns."""


class Sample(NamedTuple):
    """An image as a loader process hands it over; None where it can't be read."""

    pixels: Pixels | None
    target: int
    position: int
    problems: tuple[str, ...]


class Augmented(Dataset[Sample]):
    """The images of a source by key, transformed with the randomness that belongs to the key.

    The bits of a sample depend on (seed, epoch, index, repeat) alone: they seed the global
    generators, from which transforms draw. An unreadable image is replaced by the next readable one
    where `replace`, and missing otherwise; its problem is handed over, since an exception would
    arrive from a loader process as a traceback.
    """

    def __init__(self, source: Source, transform: Transform, seed: int, *, replace: bool) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.replace = replace

    def __getitem__(self, key: Key) -> Sample:
        return at_once(self._sample(key))

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """As a DataLoader asks for them: a batch, a few of its images in turns."""
        if not isinstance(self.transform, Cropped):
            return collate([self[key] for key in keys])
        images_nhwc = memory((len(keys), *self.transform.crop.shape_hwc))
        works = map(self._sample, keys, images_nhwc.unbind())
        samples: list[Sample] = []
        while group := list(itertools.islice(works, TOGETHER)):
            samples += in_turns(group)
        return collate(samples, images_nhwc)

    def _sample(self, key: Key, row_hwc: Tensor | None = None) -> Steps[Sample]:
        epoch, index, repeat = key
        problems: list[str] = []
        for offset in range(min(MAX_UNREADABLE, len(self.source)) if self.replace else 1):
            position = (index + offset) % len(self.source)
            try:
                seed_generators(self.seed, epoch, index, repeat)
                pixels, target = yield from self._read(position, row_hwc)
                return Sample(pixels, target, position, tuple(problems))
            except DataError as error:
                problems.append(str(error))
        return Sample(None, -1, index, tuple(problems))

    def _read(self, position: int, row_hwc: Tensor | None) -> Steps[tuple[Pixels, int]]:
        raw, target = self.source.read(position)
        try:
            if isinstance(self.transform, Cropped):
                return (yield from self.transform.steps(raw, row_hwc)), target
            return self.transform(raw), target
        except DataError as error:
            raise DataError(f"{self.source.name(position)}: {error}") from None


def seed_generators(*key: int) -> None:
    """Start Python's, numpy's and torch's CPU generator from `key`; the GPU's stay as they are."""
    words = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])


@contextmanager
def untouched_generators() -> Generator[None]:
    """Python's, numpy's and torch's CPU generator are afterwards what they were before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def train_batches(
    source: Source,
    transform: Transform,
    order: Order,
    *,
    seed: int,
    rank: int,
    world_size: int,
    micro: int,
    workers: int,
    on_error: OnError,
    start_step: int,
    total_steps: int,
    pin_memory: bool,
    place: Callable[[int], int] = int,
) -> Iterator[Batch]:
    """A rank's micro-batches of the steps from `start_step` up to `total_steps`, in order.

    A step has the batch that is `place(step)` in the order; its own number if nothing went wrong.
    One loader serves the whole rest of the run, so no epoch starts with waiting for processes.

    Raises:
        DataError: on_error="fail": an image can't be read; "skip": nor can any that follow it.
    """
    keys, wanted = itertools.tee(
        part
        for step in range(start_step, total_steps)
        for part in order.share(place(step), rank, world_size, micro)
    )
    dataset = Augmented(source, transform, seed, replace=on_error == "skip")
    for batch, part in zip(_load(dataset, keys, workers, pin_memory), wanted, strict=True):
        if len(batch.indices) < len(part):
            raise _unreadable(batch.problems, on_error)
        yield batch


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    rank: int,
    world_size: int,
    batch: int,
    workers: int,
    on_error: OnError,
    pin_memory: bool,
) -> Iterator[Batch]:
    """A rank's share of all images, each exactly once over the ranks, `batch` at a time.

    Shares differ by an image where the number does not divide, and are empty where there are more
    ranks than images. on_error="skip" leaves unreadable images out and names them.

    Raises:
        DataError: on_error="fail": an image can't be read; "skip": none of the share can.
    """
    mine = range(rank, len(source), world_size)
    starts = range(0, len(mine), batch)
    keys = ([(0, index, 0) for index in mine[start : start + batch]] for start in starts)
    dataset = Augmented(source, transform, seed=0, replace=False)
    loaded = _load(dataset, keys, min(workers, len(starts)), pin_memory)
    if on_error == "skip":
        yield from _without_empty(loaded)
        return
    for found in loaded:
        if found.problems:
            raise _unreadable(found.problems, on_error)
        yield found


def _load(
    dataset: Augmented, keys: Iterable[Sequence[Key]], workers: int, pin_memory: bool
) -> Iterator[Batch]:
    loaded = iter(
        DataLoader(
            dataset,
            batch_sampler=keys,  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            collate_fn=_collated,  # pyright: ignore[reportArgumentType]
            pin_memory=pin_memory,
            worker_init_fn=partial(_outlive_signals, os.getpid()),
            generator=torch.Generator(),  # else each loader draws from the global one
        )
    )
    while True:
        with untouched_generators(), _shared_memory():
            batch = next(loaded, None)
        if batch is None:
            return
        yield batch


@contextmanager
def _shared_memory() -> Generator[None]:
    """Containers have little of it, and torch's error names neither the cause nor the cure."""
    try:
        yield
    except RuntimeError as error:
        if "unable to allocate shared memory" not in str(error):
            raise
        raise DataError(
            "data.workers: loader processes have no room for a batch in /dev/shm; give the "
            "container more of it (docker run --shm-size=8g), or set data.workers=0"
        ) from None


def memory(shape: Sequence[int]) -> Tensor:
    """For the bytes of a batch: a loader process shares it with the main one."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # pyright: ignore[reportPrivateUsage]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def collate(samples: Sequence[Sample], into_nhwc: Tensor | None = None) -> Batch:
    """The readable images of `samples`, and the problems of all.

    `into_nhwc` has a row for each sample, where its image may be already.
    """
    problems = tuple(problem for sample in samples for problem in sample.problems)
    read = [(s.pixels, s.target, s.position) for s in samples if s.pixels is not None]
    if not read:
        nothing = torch.empty(0, dtype=torch.int64)
        return Batch(torch.empty(0), nothing, nothing, problems)
    pixels, targets, positions = zip(*read, strict=True)
    if pixels[0].crop is not None:
        return Batch(
            torch.empty(0),
            torch.tensor(targets),
            torch.tensor(positions),
            problems,
            _erased(pixels),
            Encoded(
                torch.cat([p.image_chw for p in pixels]),
                torch.tensor([(len(p.image_chw), *p.crop) for p in pixels]),
            ),
        )
    # Decoders write an image's channels side by side: so it is copied fastest.
    images_hwc = [p.image_chw.permute(1, 2, 0) for p in pixels]
    if into_nhwc is not None and len(into_nhwc) == len(images_hwc):
        images_nhwc = _put(images_hwc, into_nhwc)
    else:
        images_nhwc: Tensor = default_collate(images_hwc)
    return Batch(
        images_nhwc.permute(0, 3, 1, 2),
        torch.tensor(targets),
        torch.tensor(positions),
        problems,
        _erased(pixels),
    )


def _collated(batch: Batch) -> Batch:
    """Of a DataLoader, which would make tensors of whatever it gets."""
    return batch


def _put(images_hwc: Sequence[Tensor], into_nhwc: Tensor) -> Tensor:
    for image, row in zip(images_hwc, into_nhwc.unbind(), strict=True):
        if image.data_ptr() != row.data_ptr():
            row.copy_(image)
    return into_nhwc


def _erased(pixels: Sequence[Pixels]) -> Erased | None:
    patches = [(number, patch) for number, p in enumerate(pixels) for patch in p.patches]
    if not patches:
        return None
    boxes = [(n, p.top, p.left, *p.values_chw.shape[1:]) for n, p in patches]
    return Erased(torch.tensor(boxes), torch.cat([p.values_chw.flatten() for _, p in patches]))


def _without_empty(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches with images; the problems of one without go to a neighbour."""
    waiting: Batch | None = None
    orphaned: tuple[str, ...] = ()
    for batch in batches:
        if not len(batch.indices):
            orphaned += tuple(batch.problems)
            continue
        if waiting is not None:
            yield waiting
        waiting = batch._replace(problems=(*orphaned, *batch.problems))
        orphaned = ()
    if waiting is not None:
        yield waiting._replace(problems=(*waiting.problems, *orphaned))
    elif orphaned:
        raise _unreadable(orphaned, "skip")


def _unreadable(problems: Sequence[str], on_error: OnError) -> DataError:
    if on_error == "fail":
        advice = "mend or remove it, or set data.on_error=skip to go on without it"
        return DataError("\n".join([*problems, advice]))
    others = len(set(problems)) - 1
    return DataError(f"{problems[0]}\nand {others} more images; is the disk there?")


def _outlive_signals(main: int, worker: int) -> None:
    """Loader processes leave signals to the main process, which saves before it stops.

    Schedulers and terminals send a signal to every process; a loader that died of it would end the
    run before its checkpoint is written. Only SIGTERM from `main` itself, with which Python ends
    its children at exit, is obeyed. It is not their parent where a fork server starts them.
    """
    del worker
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(main,), daemon=True).start()


def _obey(main: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)
