"""All checks in one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from graftwerk.doctor import machine, network, storage
from graftwerk.doctor.finding import Finding
from graftwerk.errors import CRASH, DONE

MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "broken": "[bold red]broken[/]"}


def doctor(folder: Path, processes: int, *, as_json: bool) -> int:
    """0 unless something is broken."""
    talk = network.round_trip(processes)  # forks, so before anything touches a GPU
    found = [*machine.check(), *storage.check(folder), *network.check(), talk]
    broken = [finding for finding in found if finding.verdict == "broken"]
    if as_json:
        facts = [asdict(finding) for finding in found]
        print(json.dumps({"ok": not broken, "findings": facts}))
    else:
        _draw(found)
    return CRASH if broken else DONE


def _draw(found: Sequence[Finding]) -> None:
    table = Table("what", "found", "", "what to do")
    for finding in found:
        table.add_row(finding.what, finding.found, MARKS[finding.verdict], finding.advice)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table, highlight=False)
    broken = sum(finding.verdict == "broken" for finding in found)
    console.print(f"{broken} broken" if broken else "nothing is broken")
