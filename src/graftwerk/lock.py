"""One run at a time in a run folder: a file that says whose it is, and a heartbeat.

The file is made by a hard link, which is atomic on network file systems too; `flock` is not relied
upon. Its holder renews the file's time every `BEAT` seconds. Whoever finds it takes it over where
the holder is gone for sure: its process ended on this machine, or the scheduler has started the
same job again. Where that can't be known, nothing must have been heard of it for `STALE` seconds,
by the clock of the file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from graftwerk.errors import USER_ERROR, GraftwerkError

FILE = "lock.json"
BEAT = 10.0
STALE = 120.0
DYING = 1.0
"""Seconds that a process which was just killed may take to be gone."""


class LockedError(GraftwerkError):
    """Another process trains in this run folder."""


@dataclass(frozen=True)
class Owner:
    """A process, as others can tell it from all others."""

    host: str
    pid: int
    started: str
    """In ticks since the machine's boot."""
    machine: str
    """Boot id and process namespace: where the pid means something."""
    job: str
    """The scheduler's, or empty."""
    starts: list[int]
    """How often the scheduler, and torchrun, had started the job before."""
    since: float
    token: str

    @classmethod
    def me(cls) -> Self:
        env = os.environ
        names = (env.get("SLURM_JOB_ID", ""), env.get("TORCHELASTIC_RUN_ID", ""))
        counts = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_started(os.getpid()) or "",
            machine=machine(),
            job=" ".join(name for name in names if name and name != "none"),
            starts=[int(env.get(name, "0")) for name in counts],
            since=time.time(),
            token=secrets.token_hex(8),
        )

    def is_gone_for(self, other: Owner) -> bool | None:
        """Whether `other` may be sure that this process has ended; None: can't be known."""
        if self.job and self.job == other.job and self.starts < other.starts:
            return True
        if self.machine != other.machine:
            return None
        return _started(self.pid) != self.started


def machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> str | None:
    """When a process of this machine began; None where there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def read(path: Path) -> Owner | None:
    """Whose lock it is; None where nobody's, or just being written."""
    try:
        return _parsed(path.read_bytes())
    except OSError:
        return None


def _parsed(contents: bytes) -> Owner | None:
    try:
        return Owner(**json.loads(contents))
    except (ValueError, TypeError):
        return None


class FolderLock:
    """The lock of one folder, for one process; `close` gives it back."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._me = Owner.me()
        self._ended = threading.Event()
        self.held = False

    def acquire(self) -> None:
        """Raises LockedError where another process holds it; OSError where nobody can write."""
        own, deadline = self._path.with_name(f".lock-{self._me.token}"), time.monotonic() + DYING
        try:
            own.write_text(json.dumps(asdict(self._me)))
            while not self.held:
                try:
                    self._take(self._path, own)
                    self.held = True
                except LockedError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
        finally:
            own.unlink(missing_ok=True)

    def _take(self, path: Path, own: Path) -> None:
        """Make `path` a copy of `own`, from nothing or from a lock whose holder is gone.

        Of those that find it so, only one may replace it: who has the lock on that very lock.
        """
        if _link(own, path):
            return
        try:
            found, silent = path.read_bytes(), own.stat().st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            raise LockedError(f"{path.parent}: was given back just now; try again") from None
        holder = _parsed(found)
        gone = holder.is_gone_for(self._me) if holder is not None else None
        if not (silent > STALE if gone is None else gone):
            raise LockedError(_refusal(self._path.parent, holder, silent, known=gone is False))
        claim = path.with_name(f".lock-{hashlib.sha256(found).hexdigest()[:16]}")
        self._take(claim, own)
        try:
            if path.read_bytes() != found:
                raise LockedError(f"{path.parent}: another process was faster")
            own.replace(path)
            own.write_bytes(path.read_bytes())
        finally:
            claim.unlink()

    def keep(self, wanted: Callable[[], bool]) -> None:
        """Renew it from a thread for as long as it is held, and take it once it is `wanted`.

        A process whose lock was taken over, since it was not heard of for too long, ends at once.
        """
        threading.Thread(target=self._beat, args=(wanted,), daemon=True, name="lock").start()

    def _beat(self, wanted: Callable[[], bool]) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError, LockedError):  # the file system may come back
                if not self.held:
                    if wanted():
                        self.acquire()
                    continue
                holder = read(self._path)
                if holder is not None and holder.token != self._me.token:
                    _leave(self._path.parent, holder)
                if holder is None and not self._path.exists() and self._path.parent.exists():
                    self.acquire()
                os.utime(self._path)

    def close(self) -> None:
        self._ended.set()
        holder = read(self._path) if self.held else None
        if holder is not None and holder.token == self._me.token:
            with contextlib.suppress(OSError):
                self._path.unlink()
        self.held = False


def _link(own: Path, path: Path) -> bool:
    """Give `own` a second name; False where the name is taken."""
    try:
        path.hardlink_to(own)
    except FileExistsError:
        return own.stat().st_nlink == 2  # a server's answer got lost, and the call came twice
    except OSError:  # a file system without hard links
        try:
            with path.open("xb") as file:
                file.write(own.read_bytes())
        except FileExistsError:
            return False
    return True


def _refusal(folder: Path, holder: Owner | None, silent: float, *, known: bool) -> str:
    if holder is None:
        return f"{folder}: another process is just beginning there"
    since = time.strftime("%d %b %H:%M", time.localtime(holder.since))
    job = f" (job {holder.job})" if holder.job else ""
    said = f"{folder}: process {holder.pid} on {holder.host}{job} trains here since {since}"
    if known:
        return f"{said}; wait for it, or end it and type the command again"
    return (
        f"{said}, and was heard of {max(0, silent):.0f} s ago; wait for it, or end it. If it is "
        f"gone already, the same command takes over {STALE:.0f} s after its last sign of life"
    )


def _leave(folder: Path, holder: Owner) -> None:
    print(
        f"{folder} was taken over by process {holder.pid} on {holder.host}, for this one was not "
        f"heard of for {STALE:.0f} s; it ends without saving",
        file=sys.stderr,
        flush=True,
    )
    os._exit(USER_ERROR)
