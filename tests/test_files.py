from __future__ import annotations

import json
from pathlib import Path

import pytest

from graftwerk.files import atomic, replace


def test_atomic_keeps_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text("old")

    def fail() -> None:
        with atomic(path) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic(path) as file:
        file.write(json.dumps(1).encode())
    assert path.read_text() == "1"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    replace(path, b"old")
    with path.open("rb") as before:
        replace(path, b"new")
        assert before.read() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
