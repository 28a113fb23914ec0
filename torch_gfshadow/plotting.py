"""Pictures of records: the paper's Figure 1 with an error bar, and the curvature it argues about.

Drawn through matplotlib's object interface: no pyplot, no backend, no global state.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch_gfshadow.errors import must
from torch_gfshadow.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and the values there."""

# Okabe and Ito's palette: distinguishable under every common colour blindness.
BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
_MARKERS = "ov^*sD"
_FONT = 8.0
_COLUMN_INCHES, _ROW_INCHES = 3.3, 1.7


def figure1(
    runs: Mapping[str, Sequence[Record]],
    path: str | Path | None = None,
    *,
    overlays: Mapping[str, Mapping[str, Curve]] | None = None,
) -> Figure:
    """Draw the paper's Figure 1 with the shadow in place of the finer runs.

    One column per network; from top to bottom the loss, the distance from initialisation against
    the discrepancy from gradient flow with its error bar as a band, λ_max and λ_min with their
    residuals as bands. What no record measured is left out.

    Args:
        runs: Title → records.
        path: Where to save the picture; the suffix names the format. ``None`` saves nothing.
        overlays: Title → label → distances of finer runs, drawn beside the discrepancy.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is no run, or one without records.
        ImportError: If matplotlib is not installed.
    """
    if not runs or not all(runs.values()):
        empty = [title for title, records in runs.items() if not records]
        got = f"none for {', '.join(empty)}" if empty else "no network"
        raise ValueError(
            must("runs", "records of at least one network", got, "Record a run first.")
        )
    panels = [panel for panel in _PANELS if panel.always or _is_measured(runs.values(), panel)]
    heights = [panel.height for panel in panels]
    figure = _new_figure(
        width=_COLUMN_INCHES * max(len(runs), 1.15) + 0.3, height=_ROW_INCHES * sum(heights) + 0.7
    )
    grid: Any = figure.subplots(
        len(panels), len(runs), squeeze=False, sharex="col", sharey="row", height_ratios=heights
    )
    for row, panel in zip(grid, panels, strict=True):
        for axes, (title, records) in zip(row, runs.items(), strict=True):
            panel.draw(axes, records)
            if panel.field == "discrepancy":
                _draw_overlays(axes, (overlays or {}).get(title) or {})
                _legend_above(axes)
            _finish(axes)
        panel.scale(row, runs.values())
        row[0].set_ylabel(panel.label, fontsize=_FONT)
    for column, (title, records) in enumerate(runs.items()):
        _finish_column(grid[0][column], grid[-1][column], title, records)
    if path is not None:
        figure.savefig(path, dpi=200)
    return figure


def plot_records(records: Sequence[Record], path: str | Path | None = None) -> Figure:
    """Draw one run: loss, discrepancy with its error bar, λ_max and λ_min.

    Args:
        records: At least one record.
        path: Where to save the picture; ``None`` saves nothing.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there are no records.
        ImportError: If matplotlib is not installed.
    """
    return figure1({"": records}, path)


def require_matplotlib() -> None:
    """Raise the error of a missing matplotlib now, before hours of work for a picture.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            must(
                "matplotlib",
                "installed to draw pictures",
                "no such package",
                'Run `pip install "torch-gfshadow[demo]"`.',
            )
        )


def _new_figure(width: float, height: float) -> Figure:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _series(
    records: Sequence[Record], value: str, error: str | None = None
) -> tuple[list[float], list[float], list[float]]:
    """Return steps, values and errors of the records that measured ``value`` (error 0 if none)."""
    steps, values, errors = [], [], []
    for record in records:
        number = getattr(record, value)
        if number is None or not math.isfinite(number):
            continue
        bar = getattr(record, error) if error else None
        steps.append(float(record.step))
        values.append(float(number))
        errors.append(float(bar) if bar is not None and math.isfinite(bar) else 0.0)
    return steps, values, errors


def _positive(
    steps: Sequence[float], values: Sequence[float], errors: Sequence[float]
) -> tuple[list[float], list[float], list[float]]:
    rows = [row for row in zip(steps, values, errors, strict=True) if row[1] > 0]
    return [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]


def _is_measured(runs: Iterable[Sequence[Record]], panel: _Panel) -> bool:
    return any(_series(records, panel.field)[0] for records in runs)


def _draw_loss(axes: Axes, records: Sequence[Record]) -> None:
    steps, values, _ = _series(records, "loss")
    axes.plot(steps, values, color=BLUE, label="gradient descent, $f(\\theta_k)$")
    steps, values, _ = _series(records, "shadow_loss")
    if steps:
        label = "gradient flow, $f(\\tilde\\theta(t_k))$"
        axes.plot(steps, values, color=VERMILLION, ls=(0, (4, 3)), label=label)
    axes.legend(fontsize=_FONT - 1, frameon=False)


def _draw_distances(axes: Axes, records: Sequence[Record]) -> None:
    steps, values, _ = _positive(*_series(records, "distance_from_init"))
    axes.plot(steps, values, color=BLUE, label="from initialisation")
    steps, values, errors = _positive(*_series(records, "discrepancy", "solver_error"))
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


def _draw_overlays(axes: Axes, curves: Mapping[str, Curve]) -> None:
    for index, (label, curve) in enumerate(curves.items()):
        steps, values, _ = _positive(curve[0], curve[1], [0.0] * len(curve[0]))
        spacing = max(1, len(steps) // 10)
        axes.plot(
            steps,
            values,
            color=GREY,
            lw=0.6,
            marker=_MARKERS[index % len(_MARKERS)],
            markevery=(spacing // 2, spacing),
            ms=3.5,
            mfc="white",
            label=label,
        )


def _legend_above(axes: Axes) -> None:
    # above the panel: with the finer runs there is no free corner left inside
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2,
        fontsize=_FONT - 1,
        frameon=False,
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.8,
    )


def _draw_lambda_max(axes: Axes, records: Sequence[Record]) -> None:
    _draw_eigenvalue(axes, records, "lambda_max", GREEN)
    sizes = [record.step_size for record in records if record.step_size]
    if not sizes:
        return
    edge = 2 / sizes[-1]
    if edge < 2 * axes.dataLim.ymax:
        axes.axhline(edge, color=GREY, lw=0.8, ls="--")
    axes.text(
        0.98,
        0.05,
        f"edge of stability at $2/\\eta$ = {edge:,.4g}",
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=_FONT - 1,
        color=GREY,
    )


def _draw_lambda_min(axes: Axes, records: Sequence[Record]) -> None:
    _draw_eigenvalue(axes, records, "lambda_min", PURPLE)
    axes.axhline(0, color=GREY, lw=0.6)


def _draw_eigenvalue(axes: Axes, records: Sequence[Record], name: str, color: str) -> None:
    steps, values, errors = _series(records, name, f"{name}_residual")
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
        values = sorted(_positive(*_series(records, "discrepancy"))[1])
        if values:
            lows.append(0.3 * values[len(values) // 20])
    if lows:
        row[0].set_ylim(bottom=min(lows))


def _scale_symmetrically(row: Sequence[Axes], runs: Iterable[Sequence[Record]]) -> None:
    # the linear part of the axis begins below the data, or the curve would bend where it ends
    values = [v for records in runs for v in _series(records, "lambda_min")[1]]
    sizes = [abs(v) for v in values if v != 0] or [1.0]
    linear = 10.0 ** math.floor(math.log10(max(min(sizes), 1e-4 * max(sizes))))
    row[0].set_yscale("symlog", linthresh=linear)
    row[0].set_ylim(1.5 * min(*values, -linear), max(1.5 * max(values), 0.5 * linear))


class _Panel(NamedTuple):
    field: str
    height: float
    label: str
    draw: Callable[[Axes, Sequence[Record]], None]
    scale: Callable[[Sequence[Axes], Iterable[Sequence[Record]]], None]
    always: bool = False


_PANELS = (
    _Panel("loss", 1.0, "training loss $f$ (nats)", _draw_loss, _scale_from_zero),
    _Panel(
        "discrepancy",
        1.4,
        r"distance $\Vert\cdot\Vert_2$ of $\theta_k$ (units of $\theta$)",
        _draw_distances,
        _scale_distances,
        always=True,
    ),
    _Panel(
        "lambda_max",
        0.8,
        r"$\lambda_{\max}(\nabla^2 f)$  ($f/\theta^2$)",
        _draw_lambda_max,
        _scale_from_zero,
    ),
    _Panel(
        "lambda_min",
        0.9,
        r"$\lambda_{\min}(\nabla^2 f)$  ($f/\theta^2$)",
        _draw_lambda_min,
        _scale_symmetrically,
    ),
)


def _finish(axes: Axes) -> None:
    axes.grid(visible=True, color="#dddddd", lw=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_FONT - 1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _finish_column(top: Axes, bottom: Axes, title: str, records: Sequence[Record]) -> None:
    last = records[-1]
    top.set_title(title, fontsize=_FONT + 2)
    bottom.set_xlabel("gradient descent step $k$", fontsize=_FONT)
    bottom.set_xlim(0, max(last.step, 1))
    bottom.locator_params(axis="x", nbins=5, integer=True)
    if last.step > 0 and last.time > 0 and _constant_pace(records):
        pace = last.time / last.step
        scale: Any = (lambda k: k * pace, lambda t: t / pace)
        clock = top.secondary_xaxis("top", functions=scale)
        clock.set_xlabel(f"flow time $t_k$ ($\\eta$ = {pace:g})", fontsize=_FONT)
        clock.tick_params(labelsize=_FONT - 1)
        clock.locator_params(axis="x", nbins=5)


def _constant_pace(records: Sequence[Record]) -> bool:
    last = records[-1]
    return all(
        math.isclose(r.time * last.step, r.step * last.time, rel_tol=1e-6, abs_tol=1e-9)
        for r in records
    )
