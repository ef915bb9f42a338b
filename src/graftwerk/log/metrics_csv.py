"""`metrics.csv`: one row per evaluation, equal for an interrupted and an uninterrupted run."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import override

from graftwerk.files import replace
from graftwerk.log.sink import Sink

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """The rows of a table, as text; none where it does not exist yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace the table. The first row fixes the first columns; later rows may add some."""
    columns = list({name: None for row in rows for name in row})
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    replace(path, text.getvalue().encode())


def column(rows: Sequence[Row], name: str) -> list[float]:
    """The numbers of a column; nan where a row has none."""
    return [float(row.get(name) or "nan") for row in rows]


def ranking(rows: Sequence[Row]) -> tuple[str, bool] | None:
    """(the column that ranks evaluations, whether more is better), or None where there is none.

    Accuracy if there is one, else loss; of the averaged weights if there are any.
    """
    for score, more in (("top1", True), ("loss", False)):
        for weights in ("ema", "eval"):
            if any(row.get(f"{weights}_{score}") for row in rows):
                return f"{weights}_{score}", more
    return None


def best(rows: Sequence[Row]) -> Row | None:
    """The first of the rows with the best value in the ranking column."""
    ranked = ranking(rows)
    if ranked is None:
        return None
    name, more = ranked
    sign = -1 if more else 1
    scored = [row for row in rows if (value := float(row.get(name) or "nan")) == value]
    return min(scored, key=lambda row: sign * float(row[name]), default=None)


class MetricsCsv(Sink):
    """Keeps the whole table and replaces the file at each row, so that it is always whole."""

    durable = True

    def __init__(self, folder: Path, resumed_at_epoch: float) -> None:
        """Rows after `resumed_at_epoch` are dropped: the run makes them again."""
        self._path = folder / "metrics.csv"
        self.rows = [row for row in read(self._path) if float(row["epoch"]) <= resumed_at_epoch]
        with contextlib.suppress(OSError):  # the next row replaces the file in any case
            if self.rows:
                write(self._path, self.rows)
            else:
                self._path.unlink(missing_ok=True)

    @override
    def row(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        numbers = {name: repr(float(value)) for name, value in values.items()}
        whole = float(epoch).is_integer()
        self.rows.append({"epoch": str(int(epoch)) if whole else repr(float(epoch)), **numbers})
        write(self._path, self.rows)
