from __future__ import annotations

import io
import re

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from graftwerk.data.fast import stored_as
from graftwerk.data.jpeg import Box, Jpeg, frame_of
from graftwerk.data.pack import Recode, recoded, restart_interval


def smooth(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    noise = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def stored(image: Image.Image, **keys: object) -> Jpeg:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **keys)
    found = stored_as(buffer.getvalue())
    assert isinstance(found, Jpeg)
    return found


def random_box(rng: np.random.Generator, height: int, width: int) -> Box:
    top, bottom = sorted(rng.integers(0, height + 1, 2).tolist())
    left, right = sorted(rng.integers(0, width + 1, 2).tolist())
    top, left = min(top, height - 1), min(left, width - 1)
    return top, left, max(bottom - top, 1), max(right - left, 1)


def of_the_whole(image: Jpeg, box: Box, factor: int) -> np.ndarray:
    """The box cut out of all of the decoded image."""
    whole = simplejpeg.decode_jpeg(
        image.raw,
        fastupsample=True,
        min_height=image.height // factor,
        min_width=image.width // factor,
    )
    down, across = whole.shape[0] / image.height, whole.shape[1] / image.width
    top, left = round(box[0] * down), round(box[1] * across)
    bottom = max(round((box[0] + box[2]) * down), top + 1)
    right = max(round((box[1] + box[3]) * across), left + 1)
    return whole[top:bottom, left:right]


@pytest.fixture(params=["4:4:4", "4:2:2", "4:2:0"])
def subsampling(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("keys", [{}, {"progressive": True}, {"restart_marker_blocks": 5}])
def test_a_part_is_that_of_the_whole(
    rng: np.random.Generator, subsampling: str, factor: int, keys: dict[str, object]
):
    image = stored(smooth(rng, 301, 250), subsampling=subsampling, **keys)
    for _ in range(20):
        box = random_box(rng, 301, 250)
        np.testing.assert_array_equal(image.part(box, factor), of_the_whole(image, box, factor))


def test_a_part_spliced_of_segments_is_that_of_the_whole(
    rng: np.random.Generator, subsampling: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Jpeg, "_whole", None)
    monkeypatch.setattr(Jpeg, "_upper", None)
    unit = 8 if subsampling == "4:4:4" else 16
    for _ in range(12):
        height, width = rng.integers(1, 260, 2).tolist()
        units = -(-width // unit)
        interval = int(rng.choice([n for n in range(1, units + 1) if units % n == 0]))
        image = stored(
            smooth(rng, height, width), subsampling=subsampling, restart_marker_blocks=interval
        )
        for _ in range(6):
            box, factor = random_box(rng, height, width), int(rng.choice([1, 2, 4, 8]))
            part = image.part(box, factor)
            np.testing.assert_array_equal(part, of_the_whole(image, box, factor))


def test_damage_is_noticed_where_it_is_decoded(rng: np.random.Generator):
    image = stored(smooth(rng, 256, 256), restart_marker_blocks=2)
    marks = [match.start() for match in re.finditer(rb"\xff[\xd0-\xd7\xd9]", image.raw)]
    assert len(marks) == 128
    damaged = bytearray(image.raw)
    begin, end = marks[8 * 8 + 3] + 2, marks[8 * 8 + 4]  # of row 8: its columns 128 to 159
    damaged[begin:end] = bytes(end - begin)
    other = Jpeg(bytes(damaged), 256, 256)
    for box in ((0, 0, 128, 256), (128, 0, 128, 128), (128, 160, 128, 96)):
        np.testing.assert_array_equal(other.part(box, 1), of_the_whole(image, box, 1))
    with pytest.raises(ValueError, match="Corrupt JPEG data"):
        other.part((100, 100, 60, 60), 1)


def test_without_one_of_its_markers_a_file_is_decoded_as_a_whole(rng: np.random.Generator):
    image = stored(smooth(rng, 256, 256), restart_marker_blocks=2)
    mark = image.raw.index(b"\xff\xd3")
    for damaged in (image.raw[:mark] + image.raw[mark + 2 :], image.raw[: mark + 9]):
        with pytest.raises(ValueError, match=r"Corrupt JPEG data|Premature end of JPEG file"):
            Jpeg(damaged, 256, 256).part((200, 0, 40, 40), 1)


def test_damage_above_the_end_of_the_part_is_noticed(rng: np.random.Generator):
    image, box = stored(smooth(rng, 300, 250)), (0, 0, 150, 250)
    raw = bytearray(image.raw)
    image.part(box, 1)
    raw[len(raw) // 4 : len(raw) // 4 + 60] = b"\xff\xd9" * 30
    with pytest.raises(ValueError, match="premature end of data segment"):
        Jpeg(bytes(raw), 300, 250).part(box, 1)
    with pytest.raises(ValueError, match="Premature end of JPEG file"):
        Jpeg(image.raw[: len(raw) * 3 // 4], 300, 250).part(box, 1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_packed_files_are_cut_in_segments(rng: np.random.Generator, mode: str):
    for width, height, interval in ((500, 375, 2), (375, 300, 3), (400, 300, 1), (300, 300, 0)):
        buffer = io.BytesIO()
        smooth(rng, height, width).convert(mode).save(buffer, "PNG")
        raw, extension = recoded(buffer.getvalue(), Recode(encode="jpeg"))
        assert extension == ".jpg"
        assert restart_interval(width, height) == interval
        if mode == "RGB":
            frame = frame_of(raw)
            assert frame is not None
            assert (frame.interval, frame.unit) == (interval, (16, 16))
        plain = io.BytesIO()
        Image.open(buffer).save(plain, "JPEG", quality=90)
        with Image.open(io.BytesIO(raw)) as one, Image.open(plain) as other:
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
