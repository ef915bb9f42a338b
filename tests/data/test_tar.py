from __future__ import annotations

import contextlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graftwerk.data import tar
from graftwerk.errors import DataError
from trees import jpeg, tar_bytes

PART = st.text("abcé0._-", min_size=1, max_size=60).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(PART, min_size=1, max_size=6).map("/".join).filter(lambda p: p[-4:] != ".tar")
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
SOME = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def listed(content: bytes, folder: Path) -> dict[str, bytes]:
    """What an index would read of an archive: {path: content}."""
    path = folder / "some.tar"
    path.write_bytes(content)
    members = list(tar.members(path))
    return {name.decode(): content[offset : offset + size] for name, offset, size in members}


def packable(files: dict[str, bytes], format: int) -> bytes | None:
    """The archive; None where ustar has no room for such a name."""
    try:
        return tar_bytes(files.items(), format)
    except ValueError:
        return None


@SOME
@given(st.dictionaries(PATHS, st.binary(max_size=1500), max_size=8), FORMATS)
def test_files_are_where_pythons_tarfile_has_them(
    tmp_path: Path, files: dict[str, bytes], format: int
):
    content = packable(files, format)
    if content is not None:
        wanted = {name.removeprefix("./"): data for name, data in files.items()}
        assert listed(content, tmp_path) == wanted


@SOME
@given(
    st.lists(st.dictionaries(PATHS, st.binary(max_size=700), max_size=4), min_size=1, max_size=4),
    FORMATS,
)
def test_archives_in_an_archive_are_folders(
    tmp_path: Path, inner: list[dict[str, bytes]], format: int
):
    packed = [packable(files, format) for files in inner]
    wanted = {
        f"class{number}/{name.removeprefix('./')}": data
        for number, files in enumerate(inner)
        if packed[number] is not None
        for name, data in files.items()
    }
    members = {f"class{i}.tar": content for i, content in enumerate(packed) if content is not None}
    assert listed(tar_bytes(members.items()), tmp_path) == wanted


@SOME
@given(st.data())
def test_an_archive_cut_off_anywhere_is_refused_or_whole(tmp_path: Path, data: st.DataObject):
    files = {f"c/{i}.jpg": bytes([i]) * (300 * i) for i in range(1, 5)}
    content = tar_bytes(files.items())
    end = -(-len(content.rstrip(b"\0")) // 512) * 512
    kept = data.draw(st.integers(0, len(content) - 1))
    if kept >= end + 1024:
        assert listed(content[:kept], tmp_path) == files
    else:
        with pytest.raises(DataError, match=r"some\.tar: at byte "):
            listed(content[:kept], tmp_path)


@SOME
@given(st.data())
def test_a_damaged_header_is_never_read(tmp_path: Path, data: st.DataObject):
    """But for the checksum itself, where a space is as good as a leading zero."""
    files = {f"c/{i}.jpg": bytes([i]) * 600 for i in range(4)}
    content = bytearray(tar_bytes(files.items()))
    place = data.draw(st.sampled_from([0, 1536, 3072, 4608])) + data.draw(st.integers(0, 511))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    if 148 <= place % 1536 < 156:
        with contextlib.suppress(DataError):
            assert listed(bytes(content), tmp_path) == files
        return
    with pytest.raises(DataError, match=r"some\.tar: at byte "):
        listed(bytes(content), tmp_path)


@pytest.mark.parametrize("name", ["/etc/cat.jpg", "../cat.jpg", "a/../../cat.jpg"])
def test_a_path_out_of_the_archive_is_refused(tmp_path: Path, name: str):
    with pytest.raises(DataError, match=r"some\.tar: at byte 512: .* lies outside of the archive"):
        listed(tar_bytes([("", b""), (name, b"x")]), tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_is_refused_by_name(tmp_path: Path, kind: bytes):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("a/cat.jpg")
        entry.type, entry.linkname = kind, "a/dog.jpg"
        archive.addfile(entry)
    with pytest.raises(DataError, match=r"at byte 0: 'a/cat\.jpg' is a link; write .*dereference"):
        listed(buffer.getvalue(), tmp_path)


def test_folders_and_volume_labels_hold_nothing(tmp_path: Path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind in (tarfile.DIRTYPE, tarfile.FIFOTYPE, b"V"):
            entry = tarfile.TarInfo("a")
            entry.type = kind
            archive.addfile(entry)
        entry = tarfile.TarInfo("a/cat.jpg")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"cat"))
    assert listed(buffer.getvalue(), tmp_path) == {"a/cat.jpg": b"cat"}


def test_archives_appended_to_another_are_not_passed_over(tmp_path: Path):
    one = tar_bytes([("a/1.jpg", b"1")])
    with pytest.raises(DataError, match="the archive ends here, and more follows"):
        listed(one + one, tmp_path)


def test_a_compressed_archive_is_refused(tmp_path: Path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for number in range(40):
            content = jpeg(np.random.default_rng(number))
            entry = tarfile.TarInfo(f"a/{number}.jpg")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(DataError, match="is the archive compressed"):
        listed(buffer.getvalue(), tmp_path)


def test_sizes_beyond_octal_digits(tmp_path: Path):
    """GNU's base 256 for what eleven octal digits can't say; pax says it in a record."""
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        entry = tarfile.TarInfo("a/cat.jpg")
        entry.size = 1 << 34
        path = tmp_path / "some.tar"
        header = entry.tobuf(format)
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + entry.size + 1024)  # a hole: takes no space
        assert list(tar.members(path)) == [(b"a/cat.jpg", len(header), 1 << 34)]
