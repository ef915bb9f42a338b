"""More than a thousand damaged checkpoints: each is seen and named, or what it holds is whole."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints, State, read_tensors
from graftwerk.errors import CheckpointError
from running import differences

CASES = 1200
RUN = "0123abcd"
NEWEST, BEFORE = "step-00000002", "step-00000001"
FILES = ("rank0.pt", "manifest.json")


def state_of(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    return {
        "weight": torch.randn(4, 5, generator=generator),
        "steps": step,
        "nested": {"masks": [torch.ones(3, dtype=torch.bool)], "name": "résumé", "none": None},
    }


STATES = {step: state_of(step) for step in (1, 2)}


def written(folder: Path, config: str = RUN) -> dict[Path, bytes]:
    """Two checkpoints, and the bytes of their files."""
    checkpoints = Checkpoints(folder, World(), keep=2)
    for step, state in STATES.items():
        checkpoints.save(step, state, facts={"config": config, "scores": {"top1": 0.5}})
    return {path: path.read_bytes() for path in sorted(folder.glob("step-*/*"))}


# Damages. Each is given the bytes of a file and a generator, and returns other bytes.


def flip_a_bit(contents: bytes, rng: random.Random) -> bytes:
    changed = bytearray(contents)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(contents: bytes, rng: random.Random) -> bytes:
    return contents[: rng.randrange(len(contents))]


def append(contents: bytes, rng: random.Random) -> bytes:
    return contents + rng.randbytes(rng.randrange(1, 50))


def blank_a_page(contents: bytes, rng: random.Random) -> bytes:
    """What a crash leaves on some file systems: zeros where data should be."""
    start = rng.randrange(len(contents))
    size = min(rng.randrange(1, 4096), len(contents) - start)
    changed = contents[:start] + bytes(size) + contents[start + size :]
    return changed if changed != contents else flip_a_bit(contents, rng)


def swap_two_pieces(contents: bytes, rng: random.Random) -> bytes:
    cut = rng.randrange(1, len(contents))
    return contents[cut:] + contents[:cut]


def noise(contents: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(len(contents))


def another_value(contents: bytes, rng: random.Random) -> bytes:
    """JSON stays JSON, and says something else."""
    try:
        manifest = json.loads(contents)
    except ValueError:
        return noise(contents, rng)
    tree = manifest
    while True:
        key = rng.choice(sorted(tree))
        if not isinstance(tree[key], dict) or rng.random() < 0.3:
            tree[key] = rng.choice([None, -1, 10**400, [], {}, "../../etc/passwd", True, 1.5])
            return json.dumps(manifest).encode()
        tree = tree[key]


DAMAGES = [
    flip_a_bit,
    truncate,
    append,
    blank_a_page,
    swap_two_pieces,
    noise,
    another_value,
]


def test_no_damage_is_ever_loaded(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    pristine = written(tmp_path)
    checkpoints, ended = Checkpoints(tmp_path, World(), keep=2), Counter[str]()
    for _ in range(CASES):
        damage, path = rng.choice(DAMAGES), tmp_path / NEWEST / rng.choice(FILES)
        others = [path] if rng.random() < 0.8 else [path, tmp_path / BEFORE / rng.choice(FILES)]
        for damaged in others:
            damaged.write_bytes(damage(pristine[damaged], rng))
        about = f"{damage.__name__} of {[str(p.relative_to(tmp_path)) for p in others]}"
        found, rejected = outcome(checkpoints)
        assert all("\n" not in reason for reason in rejected), about
        unharmed = json_equal(path.read_bytes(), pristine[path])
        if unharmed:
            assert rejected == [], about
        else:
            assert NEWEST in rejected[0], about
        if found is None:
            assert len(others) == 2, about
            assert BEFORE in rejected[1], about
        else:
            assert differences(found, STATES[2 if unharmed else 1]) == [], about
        ended["refused" if found is None else "as it was" if unharmed else "the one before"] += 1
        for damaged in others:
            damaged.write_bytes(pristine[damaged])
    assert sum(ended.values()) == CASES
    assert ended["refused"] > 50
    assert ended["the one before"] > 800


def outcome(checkpoints: Checkpoints) -> tuple[State | None, list[str]]:
    """The state that is resumed, and what was said of others."""
    try:
        found, _, rejected = checkpoints.resume(replicated=True, config=RUN)
    except CheckpointError as error:
        return None, str(error).splitlines()[1:-1]
    assert found is not None
    return found, rejected


def json_equal(one: bytes, other: bytes) -> bool:
    """A blank or a newline more in a manifest is no damage."""
    if one == other:
        return True
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, noise, swap_two_pieces, blank_a_page])
def test_damaged_weights_without_a_manifest_never_crash_or_execute(
    tmp_path: Path, damage: Callable[[bytes, random.Random], bytes]
) -> None:
    """A file of weights alone has no hash: it is read, or refused."""
    rng, path = random.Random(0), tmp_path / "weights.pt"
    torch.save(STATES[1], path)
    contents = path.read_bytes()
    for _ in range(40):
        path.write_bytes(damage(contents, rng))
        with contextlib.suppress(CheckpointError):
            read_tensors(path)


def swap_files(folder: Path) -> None:
    one, other = folder / NEWEST, folder / BEFORE
    for name in FILES:
        first, second = (one / name).read_bytes(), (other / name).read_bytes()
        (one / name).write_bytes(second)
        (other / name).write_bytes(first)


def swap_tensors(folder: Path) -> None:
    one, other = folder / NEWEST / "rank0.pt", folder / BEFORE / "rank0.pt"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def no_file(folder: Path) -> None:
    for name in (NEWEST, BEFORE):
        (folder / name / "rank0.pt").unlink()


def folder_for_a_file(folder: Path) -> None:
    for name in (NEWEST, BEFORE):
        (folder / name / "rank0.pt").unlink()
        (folder / name / "rank0.pt").mkdir()


def of_another_format(folder: Path) -> None:
    for name in (NEWEST, BEFORE):
        path = folder / name / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (swap_files, "is that of step"),
        (swap_tensors, "changed since it was written"),
        (no_file, "None bytes instead of"),
        (folder_for_a_file, "bytes instead of"),
        (of_another_format, "written in format 99, by another version"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    written(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=said) as caught:
        Checkpoints(tmp_path, World(), keep=2).resume(replicated=True, config=RUN)
    assert "resume=never starts anew" in str(caught.value)


def test_another_runs_checkpoint_is_passed_over_by_name(tmp_path: Path) -> None:
    written(tmp_path / "theirs", config="feedbeef")
    written(tmp_path / "ours")
    shutil.rmtree(tmp_path / "ours" / NEWEST)
    shutil.copytree(tmp_path / "theirs" / NEWEST, tmp_path / "ours" / NEWEST)
    _, manifest, rejected = Checkpoints(tmp_path / "ours", World(), keep=2).resume(
        replicated=True, config=RUN
    )
    assert manifest["step"] == 1
    assert "is of another run (config feedbeef)" in rejected[0]


def test_the_first_format_is_still_read(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / NEWEST / "manifest.json"
    old = json.loads(path.read_text()) | {"format": 1}
    del old["sha256"]
    path.write_text(json.dumps(old))
    found, manifest, rejected = Checkpoints(tmp_path, World(), keep=2).resume(replicated=True)
    assert (manifest["step"], rejected) == (2, [])
    assert differences(found, STATES[2]) == []
