"""What a run takes over from other runs: written down by digest when it starts, checked later.

`inputs.json` of a run folder names each key of the tree whose path was read, and the SHA-256 of
what it held: a weight file, or the manifest of the checkpoint that a run folder stands for.
"""

from __future__ import annotations

import json
from pathlib import Path

from graftwerk.axes import World
from graftwerk.checkpoint import Checkpoints
from graftwerk.errors import CheckpointError
from graftwerk.files import atomic, sha256
from graftwerk.paths import paths
from graftwerk.run import Run

NOT_TAKEN_OVER = ("data", "log", "launch")
"""Parts of the tree whose paths are no results of training."""


def inputs(run: Run) -> dict[str, Path]:
    """The paths by key that `run` starts from, there or not."""
    return {key: path for key, path in paths(run) if key.split(".")[0] not in NOT_TAKEN_OVER}


def digest(path: Path) -> str | None:
    """Of a weight file, an exported folder or a run's checkpoint; None where there is none yet."""
    if (path / "run.json").exists():
        checkpoints = Checkpoints(path / "checkpoints", World(), keep=1)
        entry = checkpoints.best() or checkpoints.newest_good()[0]
        return sha256(entry.folder / "manifest.json") if entry is not None else None
    file = path / "model.safetensors" if path.is_dir() else path
    return sha256(file) if file.is_file() else None


def check(run: Run) -> None:
    """Write down what `run` takes over, or see that it is still what the run began with.

    Raises CheckpointError where it changed since: the run's own checkpoints go back to something
    else, and whatever is compared with it would be compared with the wrong run.
    """
    file = run.folder / "inputs.json"
    now = {key: {"path": str(path), "sha256": digest(path)} for key, path in inputs(run).items()}
    began = any((run.folder / "checkpoints").glob("step-*"))
    if began and file.exists():
        then = json.loads(file.read_text())
        problems = [
            f"{key}: {facts['path']} is no longer what this run began with (sha256 "
            f"{then[key]['sha256'][:12]}… then, {facts['sha256'][:12]}… now)"
            for key, facts in now.items()
            if facts["sha256"] and then.get(key, facts)["sha256"] not in (None, facts["sha256"])
        ]
        if problems:
            advice = (
                f"resume=never trains {run.name} anew and keeps {run.folder} under another name"
            )
            raise CheckpointError("\n".join([*problems, advice]))
    elif now:
        with atomic(file) as contents:
            contents.write(json.dumps(now, indent=1).encode())
