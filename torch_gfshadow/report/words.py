"""Numbers as people read them; used by the findings, the tables and what hovering shows."""

from __future__ import annotations

import math


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.{digits}g}".replace("-", "−")


def with_bar(value: float | None, bar: float | None) -> str:
    """Return ``value ± bar``."""
    if value is None or bar is None:
        return number(value)
    return f"{number(value)} ± {number(bar, 1)}"


def percent(value: float | None) -> str:
    """Return a share in percent."""
    if value is None or not math.isfinite(value):
        return "–"
    return (
        f"{value:.0%}" if value >= 0.1 or value == 0 else f"{100 * value:.2g} %".replace(" %", "%")
    )


def steps(count: int) -> str:
    """Return a count of steps in words."""
    return "1 step" if count == 1 else f"{count:,} steps"


def share_of(part: float | None, whole: float | None) -> str:
    """Return ``part`` in percent of ``whole``."""
    return percent(part / whole if part is not None and whole else None)


def printable(text: str) -> str:
    """Return a user's string without what a terminal would obey."""
    return "".join(c if c.isprintable() else "�" for c in text)
