"""Work on many images in turns: the first step of each, then the second of each.

A step's code and tables then stay in the processor's caches, where Python and a decoder would
otherwise take turns to push each other out.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work that may be interrupted at each `yield`, and what it returns."""


def in_turns(works: Iterable[Steps[T]]) -> list[T]:
    """What each of `works` returns. An exception of one ends all."""
    running = dict(enumerate(works))
    results: dict[int, T] = {}
    while running:
        for number, work in list(running.items()):
            try:
                next(work)
            except StopIteration as end:
                results[number] = end.value
                del running[number]
    return [results[number] for number in range(len(results))]


def at_once(work: Steps[T]) -> T:
    (result,) = in_turns([work])
    return result
