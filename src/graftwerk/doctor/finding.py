"""What a check of `graftwerk doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "broken"]


@dataclass(frozen=True)
class Finding:
    """`note`: training works, but not everywhere, or not as fast as it could."""

    what: str
    found: str
    verdict: Verdict = "ok"
    advice: str = ""
    """What to do; empty where all is well."""


def amount(size: float) -> str:
    """Bytes in words: ``"1.5 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"
