"""The panels of Figure 1: the field that each needs, how it is drawn and how it is scaled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch_gfshadow.plotting.bounds import lowest_bound
from torch_gfshadow.plotting.series import Curve, positive, series
from torch_gfshadow.plotting.style import BLUE, FONT, GREEN, GREY, MARKERS, PURPLE, VERMILLION
from torch_gfshadow.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def is_measured(runs: Iterable[Sequence[Record]], panel: Panel) -> bool:
    """Return whether any record of any run holds what the panel draws."""
    return any(series(records, panel.field)[0] for records in runs)


def _draw_loss(axes: Axes, records: Sequence[Record]) -> None:
    steps, values, _ = series(records, "loss")
    axes.plot(steps, values, color=BLUE, label="gradient descent, $f(\\theta_k)$")
    steps, values, _ = series(records, "shadow_loss")
    if steps:
        label = "gradient flow, $f(\\tilde\\theta(t_k))$"
        axes.plot(steps, values, color=VERMILLION, ls=(0, (4, 3)), label=label)
    axes.legend(fontsize=FONT - 1, frameon=False)


def _draw_distances(axes: Axes, records: Sequence[Record]) -> None:
    steps, values, _ = positive(*series(records, "distance_from_init"))
    axes.plot(steps, values, color=BLUE, label="from initialisation")
    steps, values, errors = positive(*series(records, "discrepancy", "solver_error"))
    if steps:
        low = [max(v - e, 1e-3 * v) for v, e in zip(values, errors, strict=True)]
        high = [v + e for v, e in zip(values, errors, strict=True)]
        nan = float("nan")
        known = [v if e <= v else nan for v, e in zip(values, errors, strict=True)]
        axes.plot(steps, known, color=VERMILLION, label="from gradient flow")
        if len(steps) > sum(map(math.isfinite, known)):
            rest = [nan if e <= v else v for v, e in zip(values, errors, strict=True)]
            axes.plot(steps, rest, color=VERMILLION, ls=(0, (1, 1)), label="… not resolved")
        axes.fill_between(
            steps, low, high, color=VERMILLION, alpha=0.25, lw=0, label="its error bar"
        )
    axes.set_yscale("log")


def draw_overlays(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Draw labelled curves of finer runs, thin, each with its own marker."""
    for index, (label, curve) in enumerate(curves.items()):
        steps, values, _ = positive(curve[0], curve[1], [0.0] * len(curve[0]))
        spacing = max(1, len(steps) // 10)
        axes.plot(
            steps,
            values,
            color=GREY,
            lw=0.6,
            marker=MARKERS[index % len(MARKERS)],
            markevery=(spacing // 2, spacing),
            ms=3.5,
            mfc="white",
            label=label,
        )


def _draw_lambda_max(axes: Axes, records: Sequence[Record]) -> None:
    _draw_eigenvalue(axes, records, "lambda_max", GREEN)
    steps, sizes, _ = series(records, "step_size")
    edges = [(k, 2 / size) for k, size in zip(steps, sizes, strict=True) if size > 0]
    if not edges:
        return
    label = "edge of stability at $2/\\eta$"
    near = [(k, edge) for k, edge in edges if edge < 2 * axes.dataLim.ymax]
    if min(sizes) == max(sizes):
        label += f" = {edges[-1][1]:,.4g}"
        if near:
            axes.axhline(near[-1][1], color=GREY, lw=0.8, ls="--")
    elif near:  # under a schedule the edge is a curve
        label = f"dashed: {label}"
        axes.plot(*zip(*near, strict=True), color=GREY, lw=0.8, ls="--")
    else:
        return
    axes.text(
        1.0,
        1.02,  # above the panel: the values may lie anywhere in it
        label,
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=FONT - 1,
        color=GREY,
    )


def _draw_lambda_min(axes: Axes, records: Sequence[Record]) -> None:
    _draw_eigenvalue(axes, records, "lambda_min", PURPLE)
    axes.axhline(0, color=GREY, lw=0.6)


def _draw_eigenvalue(axes: Axes, records: Sequence[Record], name: str, color: str) -> None:
    steps, values, errors = series(records, name, f"{name}_residual")
    low = [v - e for v, e in zip(values, errors, strict=True)]
    high = [v + e for v, e in zip(values, errors, strict=True)]
    axes.fill_between(steps, low, high, color=color, alpha=0.25, lw=0)
    axes.plot(steps, values, color=color, marker="o", ms=1.8, lw=1.0)


def _scale_from_zero(row: Sequence[Axes], runs: Iterable[Sequence[Record]]) -> None:
    top = max(axes.dataLim.ymax for axes in row)
    if math.isfinite(top) and top > 0:
        row[0].set_ylim(0, 1.08 * top)


def _scale_distances(row: Sequence[Axes], runs: Iterable[Sequence[Record]]) -> None:
    # neither the first steps nor the lower edge of an unresolved band set the scale
    lows = []
    for records in runs:
        values = sorted(positive(*series(records, "discrepancy"))[1])
        if values:
            lows.append(0.3 * values[len(values) // 20])
    if lows:
        row[0].set_ylim(bottom=min(lows))


def _scale_symmetrically(row: Sequence[Axes], runs: Iterable[Sequence[Record]]) -> None:
    # the linear part of the axis begins below the data, or the curve would bend where it ends
    runs = list(runs)
    values = [v for records in runs for v in series(records, "lambda_min")[1]]
    floors = [f for records in runs if (f := lowest_bound(records)) is not None]
    sizes = [abs(v) for v in values if v != 0] or [1.0]
    linear = 10.0 ** math.floor(math.log10(max(min(sizes), 1e-4 * max(sizes))))
    row[0].set_yscale("symlog", linthresh=linear)
    row[0].set_ylim(1.5 * min(*values, *floors, -linear), max(1.5 * max(values), 0.5 * linear))


class Panel(NamedTuple):
    """One row of the figure: the record field that it needs, and how it is drawn and scaled."""

    field: str
    height: float
    label: str
    draw: Callable[[Axes, Sequence[Record]], None]
    scale: Callable[[Sequence[Axes], Iterable[Sequence[Record]]], None]
    always: bool = False


PANELS = (
    Panel("loss", 1.0, "training loss $f$", _draw_loss, _scale_from_zero),
    Panel(
        "discrepancy",
        1.4,
        r"distance $\Vert\cdot\Vert_2$ of $\theta_k$ (units of $\theta$)",
        _draw_distances,
        _scale_distances,
        always=True,
    ),
    Panel(
        "lambda_max",
        0.8,
        r"$\lambda_{\max}(\nabla^2 f)$  ($f/\theta^2$)",
        _draw_lambda_max,
        _scale_from_zero,
    ),
    Panel(
        "lambda_min",
        0.9,
        r"$\lambda_{\min}(\nabla^2 f)$  ($f/\theta^2$)",
        _draw_lambda_min,
        _scale_symmetrically,
    ),
)
