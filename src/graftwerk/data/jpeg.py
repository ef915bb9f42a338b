"""The part of a JPEG file that a crop needs, decoded without the rest.

A sequential file (ITU-T T.81) is decoded from above, so rows below the crop are left out. Where
restart markers divide each row of units into equal segments, as in files that `graftwerk data pack`
encodes, a smaller file is put together of the segments that the crop touches: each is decoded
without those before it (T.81, E.2.4), so all others are left out.
"""

from __future__ import annotations

import math
import re
import struct
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import simplejpeg

Box = tuple[int, int, int, int]
"""(top, left, height, width)."""

START_OF_IMAGE = b"\xff\xd8"
START_OF_FRAME, START_OF_SCAN = (0xC0, 0xC1), 0xDA
"""Markers of sequential files; others, such as progressive ones, come in scans of all rows."""
DEFINE_INTERVAL, RESTART, RESTARTS, END_OF_IMAGE = 0xDD, 0xD0, 8, 0xD9
REST_LEFT_OUT = re.compile("extraneous bytes before marker 0xd9")
"""What libjpeg-turbo says of rows that the frame header does not know of."""


MARKER = struct.Struct(">BBH")
"""0xFF, kind, length of what follows."""


class Window(NamedTuple):
    """Rows from `top` up to `bottom` and columns from `left` up to `right`."""

    top: int
    left: int
    bottom: int
    right: int

    def of(self, pixels: np.ndarray, above: int = 0, before: int = 0) -> np.ndarray:
        """This part of an image of which `above` rows and `before` columns are not there."""
        return pixels[
            self.top - above : self.bottom - above, self.left - before : self.right - before
        ]


class Frame(NamedTuple):
    """How a sequential colour image with a single scan is laid out in its file."""

    size_at: int
    """Where the header has the image's height and width, two bytes each."""
    data_at: int
    """Where the entropy-coded data begin."""
    unit: tuple[int, int]
    """Height and width in pixels of what is encoded together (T.81 calls it MCU)."""
    interval: int
    """Units between restart markers; 0 where there are none."""


@dataclass(frozen=True)
class Jpeg:
    """A colour JPEG file and the size of its image."""

    raw: bytes
    height: int
    width: int

    def part(self, box: Box, factor: int) -> np.ndarray:
        """The box [h, w, 3] of the image, decoded at 1/`factor` of its size.

        The pixels stay until the thread's next call. Raises `ValueError` where libjpeg-turbo
        objects to anything that it was given.
        """
        window = self._scaled(box, factor)
        frame = frame_of(self.raw)
        if frame is None:
            return window.of(self._whole(factor))
        if not frame.interval:
            return window.of(self._upper(frame, window.bottom * factor, factor))
        height, width = frame.unit[0] // factor, frame.interval * frame.unit[1] // factor
        top, left, bottom, right = window
        segments = Window(top // height, left // width, -(-bottom // height), -(-right // width))
        pixels = self._spliced(frame, segments, factor)
        if pixels is None:
            return window.of(self._whole(factor))
        return window.of(pixels, segments.top * height, segments.left * width)

    def _whole(self, factor: int) -> np.ndarray:
        return _decoded(self.raw, self.height, self.width, factor)

    def _scaled(self, box: Box, factor: int) -> Window:
        down, across = (-(-side // factor) / side for side in (self.height, self.width))
        top, left = round(box[0] * down), round(box[1] * across)
        bottom, right = round((box[0] + box[2]) * down), round((box[1] + box[3]) * across)
        return Window(top, left, max(bottom, top + 1), max(right, left + 1))

    def _upper(self, frame: Frame, height: int, factor: int) -> np.ndarray:
        """The first `height` rows of the image, at 1/`factor` of its size."""
        if height >= self.height:
            return self._whole(factor)
        raw = bytearray(self.raw)
        struct.pack_into(">H", raw, frame.size_at, height)
        return _decoded(raw, height, self.width, factor, goes_on=True)

    def _spliced(self, frame: Frame, segments: Window, factor: int) -> np.ndarray | None:
        """Those segments of all, at 1/`factor` of their size.

        None where segments don't divide rows, or markers are not those that should be there.
        """
        rows, units = -(-self.height // frame.unit[0]), -(-self.width // frame.unit[1])
        columns, rest = divmod(units, frame.interval)
        marks = None if rest else _marks(self.raw, frame.data_at, rows * columns)
        if marks is None:
            return None
        top, left, bottom, right = segments
        ends = marks[1:].reshape(-1, columns)[top:bottom, left:right]
        begins = marks[top * columns + left : bottom * columns : columns] + 2
        stops = ends[:, -1] + 2
        header = self.raw[: frame.data_at]
        pairs = zip(begins.tolist(), stops.tolist(), strict=True)
        spliced = bytearray().join([header, *[self.raw[begin:stop] for begin, stop in pairs]])
        kinds = ends + (np.cumsum(stops - begins) - stops + len(header) + 1)[:, None]
        np.frombuffer(spliced, np.uint8)[kinds] = _kinds(kinds.size).reshape(kinds.shape)
        height, width = frame.unit[0], frame.unit[1] * frame.interval
        height = min(bottom * height, self.height) - top * height
        width = min(right * width, self.width) - left * width
        struct.pack_into(">HH", spliced, frame.size_at, height, width)
        return _decoded(spliced, height, width, factor)


def _marks(raw: bytes, data_at: int, segments: int) -> np.ndarray | None:
    """Where the markers around segments are [segments + 1]; before the first there is none.

    None where they are not those that should be there.
    """
    data = np.frombuffer(raw, np.uint8, offset=data_at)
    (places,) = (data[:-1] == 0xFF).nonzero()
    kinds = data[places + 1]
    marked = kinds.nonzero()[0][:segments]  # 0 follows where 0xFF is data
    if len(marked) < segments or kinds[marked].tobytes() != _kinds(segments).tobytes():
        return None
    marks = np.empty(segments + 1, np.int64)
    marks[0] = data_at - 2
    np.add(places[marked], data_at, out=marks[1:])
    return marks


@lru_cache(1024)
def _kinds(count: int) -> np.ndarray:
    """The second bytes of the markers behind `count` segments."""
    kinds = (RESTART + np.arange(count) % RESTARTS).astype(np.uint8)
    kinds[-1] = END_OF_IMAGE
    return kinds


def frame_of(raw: bytes) -> Frame | None:
    """None where rows of all colours don't follow one another."""
    at, interval, size_at, unit = len(START_OF_IMAGE), 0, 0, (0, 0)
    while len(raw) > at + 9:
        start, kind, length = MARKER.unpack_from(raw, at)
        if start != 0xFF:
            break
        if kind in START_OF_FRAME:
            size_at = at + 5
            sampling = raw[at + 11 : at + 2 + length : 3]
            unit = 8 * max(s & 15 for s in sampling), 8 * max(s >> 4 for s in sampling)
        elif kind == DEFINE_INTERVAL:
            interval = int.from_bytes(raw[at + 4 : at + 6], "big")
        elif kind == START_OF_SCAN:
            whole = size_at and raw[at + 4] == 3
            return Frame(size_at, at + 2 + length, unit, interval) if whole else None
        at += 2 + length
    return None


_memory: dict[int, np.ndarray] = {}


def _scratch(size: int) -> np.ndarray:
    """Memory to decode into, the same for every image of a thread: fresh pages cost time."""
    thread = threading.get_ident()
    found = _memory.get(thread)
    if found is None or len(found) < size:
        found = _memory[thread] = np.empty(size, np.uint8)
    return found


def _decoded(
    raw: bytes | bytearray, height: int, width: int, factor: int, *, goes_on: bool = False
) -> np.ndarray:
    """All of an image of `height` and `width`, at 1/`factor`; its data may go on below."""
    shape = -(-height // factor), -(-width // factor), 3
    pixels = _scratch(math.prod(shape))
    try:
        simplejpeg.decode_jpeg(
            raw,
            "RGB",
            fastupsample=True,
            min_height=height // factor,
            min_width=width // factor,
            buffer=pixels,
        )
    except ValueError as error:
        # It tells of the first thing that is wrong, after it has decoded all it can.
        if not goes_on or not REST_LEFT_OUT.search(str(error)):
            raise
    return pixels[: math.prod(shape)].reshape(shape)
