"""Pictures of records: the paper's Figure 1 with an error bar, and the curvature it argues about.

Drawn through matplotlib's object interface: no pyplot, no backend, no global state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_gfshadow.errors import must
from torch_gfshadow.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and the values there."""

# Okabe and Ito's palette: distinguishable under every common colour blindness.
BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
_FONT = 8.0
_SMALL: Any = {"fontsize": _FONT - 1, "color": GREY}


def figure1(
    runs: Mapping[str, Sequence[Record]],
    path: str | Path | None = None,
    *,
    overlays: Mapping[str, Mapping[str, Curve]] | None = None,
) -> Figure:
    """Draw the paper's Figure 1 with the shadow in place of the finer runs.

    One column per network; from top to bottom the loss, the distance from initialisation against
    the discrepancy from gradient flow with its error bar as a band, λ_max and λ_min with their
    residuals as bands. What a record did not measure is left out.

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
        raise ValueError(
            must("runs", "records of at least one network", dict(runs), "Record a run first.")
        )
    figure = _new_figure(width=max(3.5, 3.3 * len(runs) + 0.3), height=7.2)
    panels = (_draw_loss, _draw_distances, _draw_lambda_max, _draw_lambda_min)
    grid: Any = figure.subplots(
        len(panels), len(runs), squeeze=False, sharex="col", sharey="row", height_ratios=_HEIGHTS
    )
    for column, (title, records) in enumerate(runs.items()):
        for row, draw in enumerate(panels):
            draw(grid[row][column], records)
        _draw_overlays(grid[1][column], (overlays or {}).get(title) or {})
        _finish_column(grid[:, column], title, records)
    _finish_rows(grid)
    grid[1][0].set_ylim(bottom=_floor(runs.values()))
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


_MARKERS = "ov^*sD"
_HEIGHTS = (1.0, 1.35, 0.8, 0.9)


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ImportError(
            must(
                "matplotlib",
                "installed to draw pictures",
                "no such package",
                'Run `pip install "torch-gfshadow[demo]"`.',
            )
        ) from missing
    return Figure(figsize=(width, height), layout="constrained")


def _series(
    records: Sequence[Record], value: str, error: str | None = None
) -> tuple[list[int], list[float], list[float]]:
    """Return steps, values and errors of the records that measured ``value`` (error 0 if none)."""
    steps, values, errors = [], [], []
    for record in records:
        number = getattr(record, value)
        if number is None or not math.isfinite(number):
            continue
        bar = getattr(record, error) if error else None
        steps.append(record.step)
        values.append(float(number))
        errors.append(float(bar) if bar is not None and math.isfinite(bar) else 0.0)
    return steps, values, errors


def _draw_loss(axes: Axes, records: Sequence[Record]) -> None:
    steps, values, _ = _series(records, "loss")
    axes.plot(steps, values, color=BLUE, label="gradient descent, $f(\\theta_k)$")
    steps, values, _ = _series(records, "shadow_loss")
    if steps:
        axes.plot(steps, values, color=VERMILLION, ls=(0, (4, 3)), label="gradient flow (shadow)")
    axes.set_ylabel("training loss $f$ (nats)")
    axes.set_ylim(bottom=0)


def _draw_distances(axes: Axes, records: Sequence[Record]) -> None:
    steps, values, _ = _positive(*_series(records, "distance_from_init"))
    axes.plot(steps, values, color=BLUE, label="from initialisation")
    steps, values, errors = _positive(*_series(records, "discrepancy", "solver_error"))
    low = [max(v - e, 1e-3 * v) for v, e in zip(values, errors, strict=True)]
    high = [v + e for v, e in zip(values, errors, strict=True)]
    axes.plot(steps, values, color=VERMILLION, label="from gradient flow (discrepancy)")
    axes.fill_between(steps, low, high, color=VERMILLION, alpha=0.25, lw=0, label="error bar")
    axes.set_yscale("log")
    axes.set_ylabel(r"distance $\Vert\cdot\Vert_2$ from $\theta_k$ (units of $\theta$)")


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


def _floor(runs: Iterable[Sequence[Record]]) -> float | None:
    """Return the lower end of the distance axis: neither the first steps nor a band set it."""
    lows = []
    for records in runs:
        values = sorted(_positive(*_series(records, "discrepancy"))[1])
        if values:
            lows.append(0.3 * values[len(values) // 20])
    return min(lows, default=None)


def _draw_lambda_max(axes: Axes, records: Sequence[Record]) -> None:
    _draw_eigenvalue(axes, records, "lambda_max", GREEN)
    axes.set_ylabel(r"$\lambda_{\max}(\nabla^2 f)$  ($f/\theta^2$)")
    axes.set_ylim(bottom=0)
    sizes = [r.step_size for r in records if r.step_size]
    if sizes:
        text = f"edge of stability: $2/\\eta$ = {2 / sizes[-1]:,.4g}"
        axes.text(0.98, 0.93, text, transform=axes.transAxes, ha="right", va="top", **_SMALL)


def _draw_lambda_min(axes: Axes, records: Sequence[Record]) -> None:
    _draw_eigenvalue(axes, records, "lambda_min", PURPLE)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.axhline(0, color=GREY, lw=0.6)
    axes.set_ylabel(r"$\lambda_{\min}(\nabla^2 f)$  ($f/\theta^2$)")


def _draw_eigenvalue(axes: Axes, records: Sequence[Record], name: str, color: str) -> None:
    steps, values, errors = _series(records, name, f"{name}_residual")
    low = [v - e for v, e in zip(values, errors, strict=True)]
    high = [v + e for v, e in zip(values, errors, strict=True)]
    axes.fill_between(steps, low, high, color=color, alpha=0.25, lw=0)
    axes.plot(steps, values, color=color, marker="o", ms=1.8, lw=1.0)


def _positive(
    steps: Sequence[float], values: Sequence[float], errors: Sequence[float]
) -> tuple[list[float], list[float], list[float]]:
    rows = [row for row in zip(steps, values, errors, strict=True) if row[1] > 0]
    return [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]


def _finish_column(column: Sequence[Axes], title: str, records: Sequence[Record]) -> None:
    last = records[-1]
    column[0].set_title(title, fontsize=_FONT + 2, pad=4)
    column[-1].set_xlabel("gradient descent step $k$", fontsize=_FONT)
    column[-1].set_xlim(0, max(last.step, 1))
    if last.step > 0 and last.time > 0 and _constant_pace(records):
        pace = last.time / last.step
        scale: Any = (lambda k: k * pace, lambda t: t / pace)
        clock = column[0].secondary_xaxis("top", functions=scale)
        clock.set_xlabel(f"flow time $t_k$ ($\\eta$ = {pace:g})", fontsize=_FONT)
        clock.tick_params(labelsize=_FONT - 1)


def _constant_pace(records: Sequence[Record]) -> bool:
    last = records[-1]
    return all(
        math.isclose(r.time * last.step, r.step * last.time, rel_tol=1e-6, abs_tol=1e-9)
        for r in records
    )


def _finish_rows(grid: Sequence[Sequence[Axes]]) -> None:
    for row in grid:
        for index, axes in enumerate(row):
            axes.grid(visible=True, color="#dddddd", lw=0.5)
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=_FONT - 1)
            axes.yaxis.label.set_fontsize(_FONT)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            if index > 0:
                axes.set_ylabel("")
    for row in grid[:2]:
        for axes in row:
            axes.legend(fontsize=_FONT - 1, frameon=False)
