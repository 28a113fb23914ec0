"""Bounds in the panels of what they limit: above the discrepancy, below λ_min."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch_gfshadow.plotting.series import Curve, series
from torch_gfshadow.plotting.style import GREY
from torch_gfshadow.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What a line says of its numbers: proven, sampled, or refuted.
_STYLES = {
    "certified": ("-", "certified"),
    "estimated": ((0, (4, 2)), "estimate"),
    "failed": ((0, (1, 1.5)), "void"),
}
_SHADES = (GREY, "#000000", "#996633")
_NAMES = {
    "theorem2": "Theorem 2",
    "lemma2": "Lemma 2",
    "nonlinear": "Lemma 2, non-linear",
    "convolution": "Lemma 2, convolutional",
}
_DECADES = 3.0
"""How far above what was measured the axis reaches for a bound, which may be e^1000."""


def draw_bounds(axes: Axes, records: Sequence[Record], of: str) -> None:
    """Draw every bound on ``of`` into the panel of ``of``, one line style per kind.

    Args:
        axes: The panel.
        records: The run.
        of: ``"discrepancy"`` or ``"lambda_min"``.
    """
    names = dict.fromkeys(
        name
        for record in records
        for name, cell in record.bounds.items()
        if cell.get("of", "discrepancy") == of
    )
    for index, name in enumerate(names):
        for kind, (style, word) in _STYLES.items():
            steps, values = _curve(records, name, kind)
            if not steps:
                continue
            axes.plot(
                steps,
                values,
                color=_SHADES[index % len(_SHADES)],
                ls=style,
                lw=1.0,
                label=f"{_NAMES.get(name, name)} ({word})",
            )
    if names and of == "discrepancy":
        _cap(axes, records)


def lowest_bound(records: Sequence[Record]) -> float | None:
    """Return the lowest limit of λ_min that is drawn, at most a thousand times λ_min itself."""
    floors = [
        float(cell["value"])
        for record in records
        for cell in record.bounds.values()
        if cell.get("of") == "lambda_min" and _is_number(cell.get("value"))
    ]
    measured = series(records, "lambda_min")[1]
    if not floors or not measured:
        return None
    return max(min(floors), -(10**_DECADES) * max(abs(v) for v in measured))


def _curve(records: Sequence[Record], name: str, kind: str) -> Curve:
    """Return the values of one kind, and of the record before, so that the line is connected."""
    cells = [(float(r.step), r.bounds[name]) for r in records if name in r.bounds]
    known = [(k, float(c["value"]), c) for k, c in cells if _is_number(c.get("value"))]
    keep = [_kind(c) == kind for _, _, c in known]
    steps, values = [], []
    for index, (step, value, _) in enumerate(known):
        starts = not keep[index] and index + 1 < len(known) and keep[index + 1]
        if keep[index] or (starts and kind == "failed"):
            steps.append(step)
            values.append(value if value else math.nan)  # a logarithmic axis has no 0
        elif steps and not math.isnan(values[-1]):
            steps.append(step)
            values.append(math.nan)
    return (steps, values) if any(math.isfinite(v) for v in values) else ([], [])


def _cap(axes: Axes, records: Sequence[Record]) -> None:
    measured = series(records, "distance_from_init")[1] + series(records, "discrepancy")[1]
    highest = max(measured, default=0.0) * 10**_DECADES
    if highest > 0.0 and axes.get_ylim()[1] > highest:
        axes.set_ylim(top=highest)


def _kind(cell: Mapping[str, Any]) -> str:
    return str(cell.get("kind", "certified" if cell.get("certified") is True else "estimated"))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
