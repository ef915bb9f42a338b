"""A training of jobs, and what a cluster does to them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from graftwerk.errors import CRASH, DONE
from graftwerk.launch import slurm, state
from graftwerk.launch.commands import cancel
from graftwerk.launch.slurm import SlurmError
from graftwerk.launch.state import FINISHED, Queue, Status
from graftwerk.launch.submit import dependents
from graftwerk.launch.sweep import Sweep
from graftwerk.rehearse import accidents
from graftwerk.rehearse.cluster import Cluster
from graftwerk.verify import node
from graftwerk.verify.attempt import TAIL, FailedError
from graftwerk.verify.disturb import PATIENCE, Scene, cut_newest

LOOK = 0.5
"""Seconds between two questions to Slurm."""
POLL = 0.05
"""Seconds between two looks at a log on a file system that many share."""
REFUSED = 2.0
"""Seconds after a job's end within which its node may refuse it, as one that was killed."""


class Impatience:
    """Jobs that were requeued wait for minutes, for their old credential; here they do not."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], float] = {}
        """Since when each job waits for which start: it may run and end between two looks."""

    def hurry(self, queue: Queue) -> None:
        now = time.monotonic()
        waiting = [job for job, one in queue.items() if one.where == "BeginTime"]
        starts = slurm.restarts() if waiting else {}
        waits = [(job, starts[job]) for job in waiting if job in starts]
        self._seen = {wait: self._seen.get(wait, now) for wait in waits}
        for (job, _), since in self._seen.items():
            if now - since > REFUSED:
                with contextlib.suppress(SlurmError):  # it has begun, or the site forbids it
                    slurm.start_now(job)


class Jobs:
    """``graftwerk *arguments --on slurm``, given again where Slurm ends a job for good."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        """`folder` is where the runs are, and nothing else."""
        self._folder = folder
        self._looked, self._known = (
            time.monotonic(),
            slurm.queue(),
        )  # where there is no Slurm: raises
        self._impatience = Impatience()
        command = [sys.executable, "-m", "graftwerk", *arguments, "--on", "slurm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != DONE:
                raise FailedError(f"the jobs were not submitted: {done.stdout}{done.stderr}")
            (file,) = folder.glob("sweeps/*/sweep.json")
        except BaseException:
            self.kill()
            raise
        self.sweep = Sweep.open(file.parent)

    @property
    def code(self) -> int | None:
        """0 where all runs are finished, 1 where some are not and nobody trains; else None."""
        queue = self.queue()
        if self._ours(queue):
            return None
        left = [one for one in self._statuses(queue) if one.state != FINISHED]
        return CRASH if left else DONE

    def lost(self, folder: Path) -> bool:
        queue = self.queue()
        gone = state.handed_to(folder) not in queue
        return gone and state.status(folder, queue).state != FINISHED

    def queue(self, *, now: bool = False) -> Queue:
        """What Slurm said a moment ago, or says now."""
        if now or time.monotonic() - self._looked > LOOK:
            self._known = slurm.queue()
            self._looked = time.monotonic()
            self._impatience.hurry({job: self._known[job] for job in self._ours(self._known)})
        return self._known

    def left(self, folder: Path) -> str:
        """Wait until the job of a run is off its nodes; what became of it.

        Where it is gone, so are those that needed it.
        """
        name = next(name for name, one in self.sweep.members.items() if one.folder == folder)
        later = dependents(self.sweep, [name])
        needing = {state.handed_to(self.sweep.members[one].folder) for one in later}
        job, deadline = state.handed_to(folder), time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            queue = self.queue(now=True)
            if job in queue and not queue[job].running:
                return "queued again"
            if job not in queue and (self._finished(folder) or not needing & queue.keys()):
                return "submitted again"
            time.sleep(LOOK)
        raise FailedError(f"job {job} was still there after {PATIENCE:.0f} s")

    def kill(self) -> None:
        """Cancel what is queued or running: it saves, and ends."""
        if self._ours(slurm.queue()):
            cancel(self._folder)

    def failed(self, while_: str) -> FailedError:
        stands = [f"{one.name} is {one.state} {one.reason}" for one in self._statuses({})]
        logs = sorted(
            self._folder.glob("sweeps/*/logs/*.out"), key=lambda file: file.stat().st_mtime
        )
        said = logs[-1].read_text(errors="replace")[-TAIL:] if logs else ""
        return FailedError(
            f"{while_}: nobody goes on with the training: {', '.join(stands)}; the newest job said "
            f"(all of it is in {self._folder}/sweeps):\n{said}"
        )

    def _finished(self, folder: Path) -> bool:
        return state.status(folder, {}).state == FINISHED

    def _ours(self, queue: Queue) -> list[str]:
        """The jobs in the queue that runs of this training were handed to."""
        files = self._folder.glob("*/job.json")
        handed = {state.handed_to(file.parent) for file in files}
        return [job for job in queue if job in handed]

    def _statuses(self, queue: Queue) -> list[Status]:
        return list(self.sweep.statuses(queue).values())


Act = Callable[[str], object]
Disturbance = Callable[[Scene[Jobs]], str | None]


def _struck(scene: Scene[Jobs], act: Act, said: str, *, cut: bool = False) -> str | None:
    """Do something to the job of a run, and wait until its processes are gone.

    Starts are counted anew then: these were no bad luck.
    """
    jobs, folder = scene.attempt, scene.folder
    try:
        act(state.handed_to(folder))
    except SlurmError:
        if state.status(folder, {}).state != FINISHED:
            raise
    became = jobs.left(folder)
    if jobs.lost(folder) or became == "queued again":
        state.forget_attempts(folder)
        return f"{said}{cut_newest(scene) if cut else ''}; {became}"
    return None


def step_killed(scene: Scene[Jobs]) -> str | None:
    return _struck(scene, partial(slurm.signal, name="KILL"), "SIGKILL to the step")


def job_killed(scene: Scene[Jobs]) -> str | None:
    """The batch script too, so that Slurm ends the job for good."""
    return _struck(scene, slurm.kill, "SIGKILL to the whole job")


def signalled(scene: Scene[Jobs]) -> str | None:
    """What comes before a preemption or the time limit: saved, ended, queued again."""
    name = scene.rng.choice(["TERM", "USR1", "USR2"])
    return _struck(scene, partial(slurm.signal, name=name), f"SIG{name} to the step")


def requeued(scene: Scene[Jobs]) -> str | None:
    return _struck(scene, slurm.requeue, "requeued by Slurm")


def truncated(scene: Scene[Jobs]) -> str | None:
    """Before the next start, on the shared file system."""
    return _struck(scene, partial(slurm.signal, name="KILL"), "SIGKILL to the step", cut=True)


def _beside(scene: Scene[Jobs], kind: str, *arguments: str) -> str | None:
    """Have it done on the job's nodes: from here it would come too late."""
    said: list[str] = []
    command = [sys.executable, "-m", node.__name__, kind, str(scene.folder), *arguments]
    became = _struck(scene, lambda job: said.extend(slurm.beside(job, command)), "")
    return None if became is None or not said else f"{said[0]}{became}"


def killed_while_saving(scene: Scene[Jobs]) -> str | None:
    return _beside(scene, "killed_while_saving")


def full_disk(scene: Scene[Jobs]) -> str | None:
    return _beside(scene, "full_disk", str(scene.half_a_checkpoint()))


def node_lost(cluster: Cluster, scene: Scene[Jobs]) -> str | None:
    """The node's power fails, and it comes back."""
    nodes: list[str] = []

    def lose(job: str) -> None:
        if job in (queue := scene.attempt.queue(now=True)):
            nodes.append(slurm.hosts(queue[job].where)[0])
            accidents.lose(cluster, nodes[0])

    did = _struck(scene, lose, "its node was lost")
    for name in nodes:
        accidents.heal(cluster, name)
    return did


KINDS: Mapping[str, Disturbance] = {
    "step killed": step_killed,
    "preempted": signalled,
    "requeued": requeued,
    "truncated checkpoint": truncated,
    "job killed": job_killed,
    "SIGKILL while saving": killed_while_saving,
    "full disk": full_disk,
}


def kinds() -> Mapping[str, Disturbance]:
    """A rehearsed cluster loses nodes, too."""
    folder = Path(os.environ.get("SLURM_CONF", "slurm.conf")).parent
    if not (folder / "rehearsal.json").exists():
        return KINDS
    return {**KINDS, "lost node": partial(node_lost, Cluster.open(folder))}
