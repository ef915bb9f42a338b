"""What a disk that takes no more means for people."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

ADVICE = {
    errno.ENOSPC: "free space there, or set save.keep=1",
    errno.EDQUOT: "your quota is used up: delete files of yours there, or ask for more",
    errno.EFBIG: "files may not grow so large there: raise the limit (ulimit -f)",
    errno.EROFS: "the file system was made read-only, often after a fault of the disk",
    errno.EACCES: "give yourself the right to write there",
    errno.EPERM: "give yourself the right to write there",
    errno.ENOENT: "the folder is gone: was it moved, deleted, or its disk unmounted?",
    errno.ESTALE: "the server of this file system has lost the folder: mount it again",
    errno.EIO: "the disk or its server fails",
}


def advice(error: BaseException) -> str:
    """What to do about it, where that is known; else empty."""
    return ADVICE.get(error.errno or 0, "") if isinstance(error, OSError) else ""


def problem(path: Path, error: Exception) -> str:
    """A sentence on why `path` could not be written: what failed, how much is free, what to do.

    torch.save reports a failed write as a RuntimeError; its cause is the OSError.
    """
    cause = next((e for e in _causes(error) if isinstance(e, OSError)), error)
    lines = str(cause).splitlines() or [type(cause).__name__]
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else lines[0]
    facts = "; ".join(filter(None, [_free(path), advice(cause)]))
    return f"{path}: {reason} ({facts}); what was saved before is intact"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _free(path: Path) -> str:
    try:
        there = next(parent for parent in path.absolute().parents if parent.exists())
        return f"{shutil.disk_usage(there).free / 2**20:.0f} MiB free"
    except OSError:
        return "the file system does not answer"
