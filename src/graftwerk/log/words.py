"""How numbers, records and events are put in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

SHARES = ("top1", "top5")
"""Scores that are shares of 1 and read as percents."""
MOST = 8
"""Items of a list that are spoken."""
UNSPOKEN = ("reason", "note", "path", "text", "status")
"""Facts of an event that speak for themselves, without their name."""


def number(name: str, value: float) -> str:
    """``"97.50 %"`` for an accuracy, else four significant digits."""
    return f"{100 * value:.2f} %" if name.endswith(SHARES) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """``"1:02:03"``, or ``"2 d 1:02:03"``."""
    if not seconds < 1e9:  # also nan
        return "-:--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days} d ' if days else ''}{hour}:{minute:02}:{second:02}"


def record(step: int, total: int, epoch: int, epochs: int, values: Mapping[str, float]) -> str:
    """The line of a record; what it does not have is left out."""
    parts = [f"epoch {epoch + 1:>{len(str(epochs))}}/{epochs}"]
    parts.append(f"step {step:>{len(str(total))}}/{total}")
    parts += [f"{name} {number(name, values[name])}" for name in ("loss", "lr") if name in values]
    if "images_per_second" in values:
        parts.append(speed(values["images_per_second"]))
    if "remaining_seconds" in values:
        parts.append(f"{duration(values['remaining_seconds'])} left")
    return "  ".join(parts)


def speed(images_per_second: float) -> str:
    return f"{images_per_second:,.{0 if images_per_second >= 10 else 1}f} images/s"


def row(epoch: float, values: Mapping[str, float]) -> str:
    """The line of an evaluation."""
    parts = [f"{name} {number(name, value)}" for name, value in values.items()]
    return "  ".join([f"epoch {epoch:g}", *parts])


def event(name: str, facts: Mapping[str, Any]) -> str:
    """``"saved step-00000450 (best)"``, ``"resumed: step 450"``."""
    if name == "saved":
        best = " (best)" if facts.get("best") else ""
        return f"saved {Path(str(facts.get('path', ''))).name}{best}"
    spoken = ", ".join(_fact(key, value) for key, value in facts.items())
    title = name.replace("_", " ")
    return f"{title}: {spoken}" if spoken else title


def facts(facts: Mapping[str, Any]) -> list[str]:
    """One aligned line for each."""
    width = max((len(key) for key in facts), default=0)
    return [f"  {key:<{width}}  {_value(key, value)}" for key, value in facts.items()]


def _fact(key: str, value: Any) -> str:
    return _value(key, value) if key in UNSPOKEN else f"{key} {_value(key, value)}"


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(key, value)
    if isinstance(value, list):
        items = cast(list[Any], value)
        more = f" and {len(items) - MOST:,} more" if len(items) > MOST else ""
        return ", ".join(str(item) for item in items[:MOST]) + more
    if isinstance(value, Mapping):
        parts = cast(Mapping[str, Any], value)
        return ", ".join(_fact(name, item) for name, item in parts.items())
    return str(value)
