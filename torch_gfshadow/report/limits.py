"""The report's figure and table of bounds: each against the discrepancy, certified or estimated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch_gfshadow.report.frame import Figure, Traces, labelled, layout, points_of, present
from torch_gfshadow.report.runs import Run
from torch_gfshadow.report.traces import LARGEST, Points, band, drawable, line, split_where, thin
from torch_gfshadow.report.words import number

_WORDS = {"discrepancy": "discrepancy", "lambda_min": "λ_min"}
_DASHES = ("dash", "dashdot", "longdash", "longdashdot")
_SHADES = tuple(f"@run{i}" for i in (0, 2, 3, 4, 5, 6, 7))  # the discrepancy is vermillion
_DECADES = 6.0
"""How far above the discrepancy the axis reaches at first; a bound may be e^1000."""


def limits(runs: Sequence[Run]) -> Figure | None:
    """Draw every bound against the discrepancy, on a logarithmic axis."""
    traces: Traces = []
    measured: list[float] = []
    for run, colour, label in labelled(runs):
        found = thin(drawable(points_of(run.records, "discrepancy", "solver_error"), log=True))
        tint = "@vermillion" if len(runs) == 1 else colour
        measured += found.values
        bounds = bound_names(run, "discrepancy")
        if not bounds:
            continue
        name = label("discrepancy")
        traces += present(band(found, tint, True, name, max(found.values, default=1.0) * 3))
        traces.append(line(name, found, tint))
        for index, bound in enumerate(bounds):
            shade = _SHADES[index % len(_SHADES)] if len(runs) == 1 else colour
            traces += limit_curves(run, bound, label(bound), shade, index)
    if not any(bound_names(run, "discrepancy") for run in runs):
        return None
    frame = layout("distance (units of θ)", traces, log=True)
    highest = [v for trace in traces for v in trace["y"] if v is not None]
    if measured and max(highest) > max(measured) * 10**_DECADES:
        low = sorted(measured)[len(measured) // 20]
        top = math.log10(max(measured)) + _DECADES
        frame["yaxis"] |= {"range": [math.log10(low) - 0.5, top], "dtick": 1}
    return Figure(
        "bounds",
        "Bounds against the discrepancy",
        "Solid lines are certified: true whenever their assumptions hold. Dashed ones are "
        "estimates: an ingredient was sampled or comes from an eigenvalue solver. Dotted, a "
        "hypothesis is known to be false there, and the number bounds nothing. What lies above "
        "the axis can be reached by zooming out; beyond 10³⁰⁰ nothing is drawn.",
        _in_words(runs),
        {"data": traces, "layout": frame},
    )


def bound_names(run: Run, of: str | None = None) -> list[str]:
    """Return the bounds of a run in the order in which they appeared; all, or those of ``of``."""
    return list(
        dict.fromkeys(
            name
            for record in run.records
            for name, cell in record.bounds.items()
            if of in (None, _of(cell))
        )
    )


def bound_rows(run: Run) -> list[dict[str, str]]:
    """Return one row per bound: its last value, mark, tightness and status."""
    rows = []
    for name in bound_names(run):
        record, cell = next((r, r.bounds[name]) for r in reversed(run.records) if name in r.bounds)
        value = _value(cell)
        measured = getattr(record, _of(cell))
        tight = value / measured if value is not None and measured else None
        rows.append(
            {
                "name": name,
                "step": f"{record.step:,}",
                "value": number(value),
                "mark": mark(cell),
                "measured": f"{_WORDS[_of(cell)]} {number(measured)}",
                "tightness": number(tight),
                "status": str(cell.get("why") or cell.get("status", "")),
            }
        )
    return rows


def mark(cell: Mapping[str, Any]) -> str:
    """Return ``"certified"``, ``"estimate"``, or ``"failed"`` where a hypothesis is false."""
    if cell.get("kind") == "failed":
        return "failed"
    return "certified" if cell.get("certified") is True else "estimate"


def _of(cell: Mapping[str, Any]) -> str:
    of = str(cell.get("of", "discrepancy"))
    return of if of in _WORDS else "discrepancy"


def limit_curves(
    run: Run, name: str, label: str, colour: str, index: int = 0, log: bool = True, **extra: Any
) -> Traces:
    """Return the certified, estimated and refuted parts of a bound, each as its own curve.

    Args:
        run: The run.
        name: The bound.
        label: What the curves are called.
        colour: Their token.
        index: Number of the bound, which chooses the dashes of an estimate.
        log: Whether the axis is logarithmic, and takes positive values only.
        extra: More of plotly's keys.
    """
    cells = [(r, r.bounds[name]) for r in run.records if name in r.bounds]
    known = [
        (r, v, mark(c))
        for r, c in cells
        if (v := _value(c)) is not None and abs(v) < LARGEST and (v > 0.0 or not log)
    ]
    points = Points(
        [float(r.step) for r, _, _ in known],
        [v for _, v, _ in known],
        [0.0] * len(known),
        [r.time for r, _, _ in known],
    )
    made: Traces = []
    for kind, style in _styles(index):
        keep = [m == kind for _, _, m in known]
        if any(keep):
            part = thin(points) if all(keep) else split_where(points, keep)[0]
            made.append(line(f"{label} ({kind})", part, colour, dash=style, **extra))
    return made


def _styles(index: int) -> tuple[tuple[str, str], ...]:
    return (("certified", "solid"), ("estimate", _DASHES[index % len(_DASHES)]), ("failed", "dot"))


def _value(cell: Mapping[str, Any]) -> float | None:
    value = cell.get("value")
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    log_value = cell.get("log_value")
    if isinstance(log_value, (int, float)) and math.isfinite(log_value):
        return math.exp(log_value) if log_value < 700 else math.inf
    return None


def _in_words(runs: Sequence[Run]) -> str:
    return " ".join(
        f"{run.name}: {row['name']}, {row['mark']}, is {row['value']} at step {row['step']}, "
        f"{row['tightness']} times the {row['measured']}."
        for run in runs
        for row in bound_rows(run)
        if row["measured"].startswith("discrepancy")
    )
