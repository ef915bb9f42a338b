"""Indexing, opening and staging data sets: how many members, how long, how much memory.

    python benchmarks/storage.py [--folder DISK] [--members 200000] [--entries 11000000] [--mb 1000]

Indexes a tar archive of `members` small files; opens an index of `entries` images in two processes
and touches all of its columns in both; copies files of `mb` megabytes with `cp` and with
`graftwerk.data.staging` in turns, the copies flushed to the disk. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from graftwerk.data import index
from graftwerk.data.archives import open_tar
from graftwerk.data.staging import stage

CLASSES = 10_450
ROUNDS = 5


def indexing(folder: Path, members: int) -> dict[str, float]:
    """Members indexed per second of processor time, each a file of two blocks."""
    archive = folder / "many.tar"
    with archive.open("wb") as file:
        for number in range(members):
            entry = tarfile.TarInfo(f"train/n{number % 1000:08}/n{number:08}.JPEG")
            entry.size = 100
            file.write(entry.tobuf(tarfile.GNU_FORMAT) + bytes(512))
        file.write(bytes(1024))
    began = time.process_time()
    splits = open_tar(archive, 0.1, 0)
    seconds = time.process_time() - began
    assert len(splits.train) + len(splits.val) == members
    archive.unlink()
    return {"members": members, "per second": round(members / seconds)}


def write_index(folder: Path, entries: int) -> None:
    """That of two archives (holes, without content) with `entries` images between them."""
    counts = {"train": entries - entries // 20, "val": entries // 20}
    archives = [folder / f"{split}.tar" for split in counts]
    for archive in archives:
        with archive.open("wb") as file:
            file.truncate(1 << 40)
    names = b"".join(
        b"n%08d/n%08d_%07d.JPEG" % (i % CLASSES, i % CLASSES, i) for i in range(entries)
    )
    width = len(names) // entries
    target = np.concatenate(
        [np.sort(np.arange(n, dtype=np.int32) % CLASSES) for n in counts.values()]
    )
    columns = {
        "offset": np.arange(entries, dtype=np.int64) * 1024,
        "size": np.full(entries, 500, dtype=np.uint32),
        "archive": np.repeat(np.arange(2, dtype=np.uint16), list(counts.values())),
        "target": target,
        "name_end": np.arange(1, entries + 1, dtype=np.int64) * width,
        "names": np.frombuffer(names, dtype=np.uint8),
    }
    facts: dict[str, Any] = {"kind": "tar", "archives": index.stamp(folder, archives)}
    facts |= {"classes": [f"n{i:08}" for i in range(CLASSES)], "splits": counts}
    index.write(folder / "tar.index", facts, columns)


def opening(folder: Path, queue: Any, turn: Any) -> None:
    """Open the index, wait for the others, touch everything; report time and memory."""
    process = psutil.Process()
    before = process.memory_full_info()
    began = time.perf_counter()
    splits = open_tar(folder, 0.1, 0)
    first = splits.train.name(0)
    seconds = time.perf_counter() - began
    columns = splits.train.index.columns  # pyright: ignore[reportAttributeAccessIssue]
    touched = sum(int(column[::64].sum()) for column in columns.values())
    turn.wait()
    after = process.memory_full_info()
    private = (after.uss - before.uss) / 1e6
    proportional = (after.pss - before.pss) / 1e6
    turn.wait()
    queue.put((seconds, private, proportional, len(splits.train), first, touched))


def index_of(folder: Path, entries: int, processes: int = 2) -> dict[str, Any]:
    write_index(folder, entries)
    context = multiprocessing.get_context("spawn")
    queue, turn = context.Queue(), context.Barrier(processes)
    started = [
        context.Process(target=opening, args=(folder, queue, turn)) for _ in range(processes)
    ]
    for process in started:
        process.start()
    found = [queue.get() for _ in started]
    for process in started:
        process.join()
    size = (folder / "tar.index").stat().st_size
    return {
        "entries": entries,
        "file, MB": round(size / 1e6),
        "seconds to open": [round(row[0], 3) for row in found],
        "private MB of each process": [round(row[1]) for row in found],
        "MB of all processes, shared pages once": round(sum(row[2] for row in found)),
    }


def staging(folder: Path, megabytes: int) -> dict[str, Any]:
    """Speed relative to `cp -r`, of four files."""
    source = folder / "source"
    source.mkdir()
    for number in range(4):
        with (source / f"{number}.tar").open("wb") as file:
            for _ in range(megabytes // 4):
                file.write(os.urandom(1 << 20))
    ratios: list[float] = []
    for number in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run(["cp", "-r", source, folder / "copy"], check=True)
        subprocess.run(["sync", "-f", folder / "copy"], check=True)
        by_cp = time.perf_counter() - began
        shutil.rmtree(folder / "copy")
        began = time.perf_counter()
        stage(source, folder / f"disk{number}")
        by_us = time.perf_counter() - began
        shutil.rmtree(folder / f"disk{number}")
        ratios.append(by_cp / by_us)
    return {
        "MB": megabytes,
        "times the speed of cp": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--members", type=int, default=200_000)
    parser.add_argument("--entries", type=int, default=11_000_000)
    parser.add_argument("--mb", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "index").mkdir()
        facts = {
            "indexing": indexing(folder, options.members),
            "index": index_of(folder / "index", options.entries),
            "staging": staging(folder, options.mb),
        }
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
