"""The report's figures of the run itself: distances, losses, cost. ``draw`` puts all in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch_gfshadow.report.frame import (
    Figure,
    Traces,
    across,
    in_words,
    labelled,
    layout,
    points_of,
    present,
)
from torch_gfshadow.report.limits import limits
from torch_gfshadow.report.runs import Run
from torch_gfshadow.report.spectrum import edges, eigenvalues
from torch_gfshadow.report.traces import band, drawable, line, split_where, thin
from torch_gfshadow.report.verdict import RESOLUTION


def draw(runs: Sequence[Run]) -> list[Figure]:
    """Return every figure for which something was measured."""
    figures = [figure for build in _FIGURES if (figure := build(runs)) is not None]
    for figure in figures:
        # ours, not plotly's: it would read its own `meta` into curves' names
        figure.spec["times"] = [trace.pop("times") for trace in figure.spec["data"]]
    return figures


def _distances(runs: Sequence[Run]) -> Figure | None:
    traces: Traces = []
    for run, colour, label in labelled(runs):
        away = thin(drawable(points_of(run.records, "distance_from_init"), log=True))
        found = thin(drawable(points_of(run.records, "discrepancy", "solver_error"), log=True))
        start, flow = ("@blue", "@vermillion") if len(runs) == 1 else (colour, colour)
        if away.steps:
            dash = "solid" if len(runs) == 1 else "dot"
            traces.append(line(label("distance from the start"), away, start, dash=dash))
        if not found.steps:
            continue
        name = label("discrepancy from gradient flow")
        top = max(away.values + found.values) * 3
        traces += present(band(found, flow, True, name, top))
        known, rest = split_where(
            found, [e <= v for v, e in zip(found.values, found.errors, strict=True)]
        )
        traces.append(line(name, known, flow))
        if any(v is not None for v in rest.values):
            traces.append(line(label("… not resolved"), rest, flow, dash="dot", group=name))
    if not traces:
        return None
    return Figure(
        "distances",
        "How far from gradient flow",
        "‖θ_k − θ̃(t_k)‖₂ with the solver's error bar as a band, against the distance travelled. "
        "Dotted: the error bar exceeds the value, which is then only an upper limit.",
        in_words(runs, "discrepancy", "solver_error", "the discrepancy"),
        {"data": traces, "layout": layout("distance (units of θ)", traces, log=True)},
    )


def _losses(runs: Sequence[Run]) -> Figure | None:
    traces: Traces = []
    positive = True
    for run, colour, label in labelled(runs):
        descent, flow = ("@blue", "@vermillion") if len(runs) == 1 else (colour, colour)
        for field, what, tint, dash in (
            ("loss", "gradient descent f(θ_k)", descent, "solid"),
            ("shadow_loss", "gradient flow f(θ̃(t_k))", flow, "dash"),
        ):
            points = thin(drawable(points_of(run.records, field), log=False))
            if points.steps:
                positive &= min(points.values) > 0
                traces.append(line(label(what), points, tint, dash=dash))
    if not traces:
        return None
    values = [v for trace in traces for v in trace["y"]]
    log = positive and max(values) > 30 * min(values)
    return Figure(
        "losses",
        "Loss",
        "The objective at the iterate and at the shadow.",
        in_words(runs, "loss", None, "the loss"),
        {"data": traces, "layout": layout("loss f", traces, log=log)},
    )


def _resolutions(runs: Sequence[Run]) -> Figure | None:
    traces: Traces = []
    for run, colour, label in labelled(runs):
        found = drawable(points_of(run.records, "discrepancy", "solver_error"), log=True)
        shares = [e / v for v, e in zip(found.values, found.errors, strict=True)]
        points = found._replace(values=shares, errors=[0.0] * len(shares))
        points = thin(drawable(points, log=True))
        if points.steps:
            tint = "@vermillion" if len(runs) == 1 else colour
            traces.append(line(label("error bar / discrepancy"), points, tint))
    if not traces:
        return None
    frame = layout("error bar / discrepancy", traces, log=True, height=300)
    across(frame, RESOLUTION, "resolved below", log=True)
    across(frame, 1.0, "unresolved above", log=True)
    return Figure(
        "resolution",
        "How well the discrepancy is known",
        "The solver's error bar as a share of the discrepancy. A smaller resolution= lowers it, at "
        "a price; which solver was in use when is under Details.",
        in_words(runs, "solver_error", None, "the error bar"),
        {"data": traces, "layout": frame},
    )


def _costs(runs: Sequence[Run]) -> Figure | None:
    traces: Traces = []
    for run, colour, label in labelled(runs):
        grads, hvps = ("@blue", "@purple") if len(runs) == 1 else (colour, colour)
        for field, what, tint, dash in (
            ("n_grad_evals", "gradients", grads, "solid"),
            ("n_hvps", "Hessian products", hvps, "dash"),
        ):
            points = thin(points_of(run.records, field))
            if any(points.values):
                traces.append(line(label(what), points, tint, dash=dash))
    if not traces:
        return None
    return Figure(
        "cost",
        "What the shadow evaluated",
        "Cumulated evaluations of the whole objective; the run's own gradients are not counted.",
        in_words(runs, "n_grad_evals", None, "the count of gradients"),
        {"data": traces, "layout": layout("evaluations so far", traces, height=300)},
    )


_FIGURES: tuple[Callable[[Sequence[Run]], Figure | None], ...] = (
    _distances,
    _losses,
    eigenvalues,
    edges,
    limits,
    _resolutions,
    _costs,
)
