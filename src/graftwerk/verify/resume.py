"""Train twice, once undisturbed and once killed again and again, and compare both ends."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Generic

from graftwerk import runfolder
from graftwerk.config import nearest, parse_overrides
from graftwerk.errors import CRASH, DONE, ConfigError
from graftwerk.recipes import find_pipeline
from graftwerk.run import Run
from graftwerk.verify import disturb, jobs, report
from graftwerk.verify.attempt import Attempt, Follower
from graftwerk.verify.disturb import A, Scene
from graftwerk.verify.jobs import Jobs
from graftwerk.verify.report import Hit, Report

SHOWN_EVERY = 0.25
"""Seconds between two looks at a run that nobody disturbs."""


@dataclass(frozen=True)
class Point:
    """A moment of a training at which something happens to it."""

    run: str
    step: int
    kind: str


@dataclass(frozen=True)
class Place(Generic[A]):
    """Who trains, and what can happen to a training there."""

    start: Callable[[Sequence[str], Path, bool], A]
    """The arguments of graftwerk; the folder of the runs; whether its interpreter has to be new."""
    kinds: Mapping[str, Callable[[Scene[A]], str | None]]
    poll: float
    """Seconds between two looks at a log."""


HERE = Place(
    lambda arguments, folder, fresh: Attempt(arguments, Path(f"{folder}.out"), fresh=fresh),
    disturb.KINDS,
    disturb.POLL,
)


def _on_slurm() -> Place[Jobs]:
    return Place(lambda arguments, folder, _: Jobs(arguments, folder), jobs.kinds(), jobs.POLL)


def verify_resume(
    recipe: str,
    words: Sequence[str],
    *,
    on: str,
    kills: int,
    seed: int | None,
    only: str | None,
    folder: Path | None,
    as_json: bool,
) -> int:
    """0 where both trainings end with the same bits, 1 where they don't."""
    seed = secrets.randbelow(2**32) if seed is None else seed
    kept = (folder or _folder(on)).absolute()
    kept.mkdir(parents=True, exist_ok=True)
    (kept / ".gitignore").write_text("*\n")  # jobs run a copy of what git would know
    given = recipe, words, kills, seed, only, kept
    found = _verified(_on_slurm(), *given) if on == "slurm" else _verified(HERE, *given)
    print(json.dumps(found.as_dict()) if as_json else report.drawn(found))
    if found.proven and folder is None:
        shutil.rmtree(kept)
    return DONE if found.proven else CRASH


def _verified(
    place: Place[A],
    recipe: str,
    words: Sequence[str],
    kills: int,
    seed: int,
    only: str | None,
    kept: Path,
) -> Report:
    whole, killed = (Training(recipe, words, kept / name, place) for name in ("whole", "killed"))
    victims = _victims(whole, only)
    with _stopped_by_signals(), report.progress(len(whole.runs)) as show:
        whole.undisturbed(show)
        steps = {name: whole.steps(name) for name in victims}
        points = draw(random.Random(seed), kills, steps, list(place.kinds))
        hits = killed.disturbed(points, random.Random(seed), show)
    rows = {
        name: report.compared(whole.runs[name].folder, killed.runs[name].folder)
        for name in whole.runs
    }
    return Report(recipe, list(words), seed, kills, hits, rows, kept)


def _folder(on: str) -> Path:
    """One that nobody has; for jobs here, since nodes share this folder, and hardly /tmp."""
    return Path(tempfile.mkdtemp(prefix="graftwerk-verify-", dir="." if on == "slurm" else None))


@contextlib.contextmanager
def _stopped_by_signals() -> Generator[None]:
    """SIGTERM and SIGHUP do what Ctrl-C does: end this command with what it has started."""

    def stop(number: int, frame: object) -> None:
        del frame
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _victims(training: Training[A], only: str | None) -> list[str]:
    """The runs that are killed: all of them, or those that a name or pattern means."""
    found = [name for name in training.runs if only is None or fnmatchcase(name, only)]
    if only is not None and not found:
        hint = nearest(only, training.runs) or f"; there are: {', '.join(training.runs)}"
        raise ConfigError([f"--run: no run {only!r} in this recipe{hint}"])
    return found


def draw(
    rng: random.Random, kills: int, steps: Mapping[str, int], of: Sequence[str]
) -> list[Point]:
    """As many moments, in the order in which a training gets there; every step is as likely.

    All kinds `of` disturbances come once before one comes again, in random order. The last step is
    spared: a run that reached it is finished. Raises ConfigError where no run has two steps.
    """
    moments = [(name, step) for name, count in steps.items() for step in range(1, count)]
    if not moments:
        raise ConfigError(["steps: a run of fewer than two steps can't be killed between them"])
    chosen = sorted(rng.choices(range(len(moments)), k=kills))
    kinds = [kind for _ in range(kills) for kind in rng.sample(of, len(of))]
    return [Point(*moments[at], kind) for at, kind in zip(chosen, kinds, strict=False)]


@dataclass
class Training(Generic[A]):
    """A recipe that is trained in a folder of its own by ``graftwerk run``."""

    recipe: str
    words: Sequence[str]
    folder: Path
    place: Place[A]
    runs: dict[str, Run] = field(init=False)
    logs: dict[str, Follower] = field(init=False)

    def __post_init__(self) -> None:
        self.words = [*self.words, f"log.folder={self.folder}", "log.every=1"]
        self.words = [*self.words, "log.console=quiet", "log.tensorboard=false"]
        self.runs = find_pipeline(self.recipe).configured(parse_overrides(self.words))
        if self.folder.exists():
            raise ConfigError([f"--folder: {self.folder} is there already; name another folder"])
        self.folder.mkdir()

    def steps(self, name: str) -> int:
        return json.loads((self.runs[name].folder / "facts.json").read_text())["steps"]

    def start(self, *, fresh: bool = False) -> A:
        self.follow()
        return self.place.start(["run", self.recipe, *self.words], self.folder, fresh)

    def follow(self) -> None:
        """What the logs say from now on."""
        self.logs = {name: Follower(run.folder / "log.jsonl") for name, run in self.runs.items()}

    def undisturbed(self, show: report.Show) -> None:
        self._to_the_end(self.start(fresh=True), show, "undisturbed", "undisturbed")

    def disturbed(
        self, points: Sequence[Point], rng: random.Random, show: report.Show
    ) -> list[Hit]:
        hits: list[Hit] = []
        attempt = self.start()
        try:
            for number, point in enumerate(points, start=1):
                title = f"{number} of {len(points)}: {point.kind}"
                scene = self._scene(attempt, point, rng)
                if not self._reach(attempt, point, show, title):
                    continue
                did = self.place.kinds[point.kind](scene)
                if did is not None:
                    hits.append(Hit(point.run, point.step, point.kind, did))
                    self.follow()
                if attempt.lost(scene.folder):
                    attempt = self.start()
            after = f"after {hits[-1].did}" if hits else "undisturbed"
            self._to_the_end(attempt, show, "to the end", after)
        finally:
            attempt.kill()
        return hits

    def _scene(self, attempt: A, point: Point, rng: random.Random) -> Scene[A]:
        scene = Scene(attempt, self.runs[point.run].folder, self.logs[point.run], rng)
        scene.left = scene.half_written()
        return scene

    def _reach(self, attempt: A, point: Point, show: report.Show, title: str) -> bool:
        """Wait until the step of `point`; False where its run is over already."""
        if runfolder.finished(self.runs[point.run]) is not None:
            return False
        while True:
            code = attempt.code
            lines = self.logs[point.run].new()
            done = max((line["step"] for line in lines if line["kind"] == "train"), default=0)
            if done >= point.step:
                return True
            if any(line.get("event") == "finished" for line in lines) or code == DONE:
                return False
            if code is not None:
                raise attempt.failed(f"on the way to {point.run}, step {point.step}")
            show(self.share_done(), title)
            time.sleep(self.place.poll)

    def _to_the_end(self, attempt: A, show: report.Show, title: str, after: str) -> None:
        try:
            while attempt.code is None:
                show(self.share_done(), title)
                time.sleep(SHOWN_EVERY)
            if attempt.code != DONE:
                raise attempt.failed(after)
        finally:
            attempt.kill()

    def share_done(self) -> float:
        """Runs that are done, and the part of the one that trains."""
        return sum(_share(run.folder) for run in self.runs.values())


def _share(folder: Path) -> float:
    newest: list[Any] = sorted(folder.glob("checkpoints/step-*"))[-1:]
    try:
        steps = json.loads((folder / "facts.json").read_text())["steps"]
    except (OSError, ValueError):
        return 0.0
    done = int(newest[0].name.removeprefix("step-")) if newest else 0
    return min(1.0, done / steps) if steps else float(bool(newest))
