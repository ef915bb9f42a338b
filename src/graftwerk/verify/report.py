"""What a verification found, for people and for programs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from graftwerk.verify.compare import differences, digest
from graftwerk.verify.ends import end

Show = Callable[[float, str], None]
"""The runs that are done, of one of the two trainings, and what happens now."""


@dataclass(frozen=True)
class Hit:
    """Something that happened to a training, at the earliest after `step` steps of `run`."""

    run: str
    step: int
    kind: str
    did: str


@dataclass(frozen=True)
class Row:
    """One kind of state at both ends of a run."""

    what: str
    undisturbed: str
    disturbed: str
    """Hashes."""
    differences: int
    first: str | None

    @property
    def equal(self) -> bool:
        return self.first is None


def compared(whole: Path, killed: Path) -> list[Row]:
    """The ends of two run folders."""
    one, other = end(whole), end(killed)
    rows: list[Row] = []
    for what in {**one, **other}:
        a, b = one.get(what), other.get(what)
        found = differences(a, b)
        first = str(found[0]) if found else None
        rows.append(Row(what, digest(a), digest(b), len(found), first))
    return rows


@dataclass(frozen=True)
class Report:
    recipe: str
    words: Sequence[str]
    seed: int
    kills: int
    hits: Sequence[Hit]
    rows: dict[str, list[Row]]
    """By run."""
    folder: Path

    @property
    def equal(self) -> bool:
        return all(row.equal for rows in self.rows.values() for row in rows)

    @property
    def proven(self) -> bool:
        """Equal, and at least one kill hit, where any were asked for."""
        return self.equal and (bool(self.hits) or not self.kills)

    @property
    def first_difference(self) -> str | None:
        """In the order of the runs, and of the rows."""
        for name, rows in self.rows.items():
            for row in rows:
                if row.first is not None:
                    return f"{name}, {row.what}: {row.first}"
        return None

    def as_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "keys": list(self.words),
            "seed": self.seed,
            "kills": self.kills,
            "hits": [asdict(hit) for hit in self.hits],
            "equal": self.equal,
            "proven": self.proven,
            "first_difference": self.first_difference,
            "runs": {
                name: [asdict(row) | {"equal": row.equal} for row in rows]
                for name, rows in self.rows.items()
            },
            "folder": None if self.proven else str(self.folder),
        }


def drawn(report: Report) -> str:
    """Tables and a verdict."""
    console = Console(file=io.StringIO(), width=None if Console().is_terminal else 120)
    console.print(_hits(report))
    for name, rows in report.rows.items():
        console.print(_states(name, rows))
    console.print(verdict(report), soft_wrap=True, highlight=False, markup=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def _hits(report: Report) -> Table:
    table = Table("kill", "run", "step", "what happened", title=f"seed {report.seed}")
    for number, hit in enumerate(report.hits, start=1):
        table.add_row(str(number), hit.run, f"{hit.step:,}", hit.did)
    return table


def _states(name: str, rows: Sequence[Row]) -> Table:
    table = Table("state", "undisturbed", "disturbed", "", title=name)
    for row in rows:
        said = "equal" if row.equal else f"{row.differences:,} differ"
        table.add_row(row.what, row.undisturbed, row.disturbed, said)
    return table


def verdict(report: Report) -> str:
    hit = f"{len(report.hits)} of {report.kills} kills hit a training"
    again = f"--kills {report.kills} --seed {report.seed} repeats them"
    if not report.equal:
        return (
            f"DIFFERENT: {hit}; the first difference (undisturbed, and disturbed):\n"
            f"{report.first_difference}\n{again}; both trainings are kept in {report.folder}"
        )
    if not report.proven:
        return f"NOT PROVEN: {hit}; train for longer (steps=…)"
    return f"EQUAL to the last bit: {hit}; {again}"


@contextlib.contextmanager
def progress(runs: int) -> Generator[Show]:
    """A bar on stderr over both trainings of `runs` runs, with the time that is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    clocks = (TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn())
    bar = Progress(*columns, *clocks, TextColumn("left"), console=Console(stderr=True))
    with bar:
        task = bar.add_task("", total=2 * runs)
        first = True

        def show(done: float, title: str) -> None:
            nonlocal first
            first = first and title == "undisturbed"
            completed = done if first else runs + done
            bar.update(task, completed=completed, description=title)

        yield show
