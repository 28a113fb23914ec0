"""The report's figures of the curvature: both ends of the spectrum, and the edge of stability."""

from __future__ import annotations

from collections.abc import Sequence

from torch_gfshadow.report.findings import EDGE
from torch_gfshadow.report.frame import (
    Figure,
    Traces,
    across,
    axis,
    in_words,
    labelled,
    layout,
    points_of,
    present,
)
from torch_gfshadow.report.limits import bound_names, limit_curves
from torch_gfshadow.report.runs import Run
from torch_gfshadow.report.traces import band, drawable, line, thin

_DEPTH = 6.0
"""So many times below λ_min the axis reaches at first; a bound may be far below."""


def eigenvalues(runs: Sequence[Run]) -> Figure | None:
    """Draw λ_max above λ_min."""
    traces: Traces = []
    for run, colour, label in labelled(runs):
        high, low = ("@green", "@purple") if len(runs) == 1 else (colour, colour)
        for field, what, tint, side in (
            ("lambda_max", "λ_max", high, "y"),
            ("lambda_min", "λ_min", low, "y2"),
        ):
            points = thin(drawable(points_of(run.records, field, f"{field}_residual"), log=False))
            if not points.steps:
                continue
            name = label(what)
            traces += present(band(points, tint, False, name, yaxis=side))
            traces.append(line(name, points, tint, markers=True, yaxis=side))
    if not traces:
        return None
    depth = min(
        (v for trace in traces if trace.get("yaxis") == "y2" for v in trace["y"]), default=0
    )
    below = _below(runs)
    frame = layout("λ_max (f/θ²)", traces, height=460)
    frame["yaxis"]["domain"] = [0.54, 1.0]
    frame["yaxis2"] = {**axis("λ_min (f/θ²)"), "domain": [0.0, 0.46], "anchor": "x"}
    frame["xaxis"]["anchor"] = "y2"
    lowest = min((v for trace in below for v in trace["y"] if v is not None), default=depth)
    if lowest < _DEPTH * depth < 0:
        frame["yaxis2"]["range"] = [_DEPTH * depth, 0.5 * -depth]
    words = (in_words(runs, n, f"{n}_residual", n) for n in ("lambda_max", "lambda_min"))
    return Figure(
        "eigenvalues",
        "Both ends of the Hessian's spectrum",
        "Ritz values at the iterate with their residuals as bands. Where λ_min is below zero "
        "neighbouring paths of the flow part at rate −λ_min; λ_max sets the largest stable step. "
        "Bounds on λ_min, if any, are dashed where estimated; what lies below the axis can be "
        "reached by zooming out.",
        " ".join(words),
        {"data": traces + below, "layout": frame},
    )


def _below(runs: Sequence[Run]) -> Traces:
    """Return the bounds of λ_min from below."""
    traces: Traces = []
    for run, colour, label in labelled(runs):
        for index, name in enumerate(bound_names(run, "lambda_min")):
            tint = f"@run{(index + 4) % 8}" if len(runs) == 1 else colour
            made = limit_curves(run, name, label(name), tint, index, log=False, yaxis="y2")
            traces += made
    return traces


def edges(runs: Sequence[Run]) -> Figure | None:
    """Draw η·λ_max against 2."""
    traces: Traces = []
    for run, colour, label in labelled(runs):
        points = thin(drawable(points_of(run.records, "edge"), log=False))
        if points.steps:
            tint = "@green" if len(runs) == 1 else colour
            traces.append(line(label("η·λ_max"), points, tint, markers=True))
    if not traces:
        return None
    frame = layout("η·λ_max", traces, height=300)
    frame["yaxis"]["rangemode"] = "tozero"
    across(frame, EDGE, "2: edge of stability")
    return Figure(
        "edge",
        "The step size against the edge of stability",
        "η·λ_max. Above 2 gradient descent on the local quadratic diverges along the sharpest "
        "direction; in practice it oscillates there.",
        in_words(runs, "edge", None, "η·λ_max"),
        {"data": traces, "layout": frame},
    )
