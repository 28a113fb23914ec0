"""Figure 1 of the paper, and the same picture of a single run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_gfshadow.errors import must
from torch_gfshadow.plotting.bounds import draw_bounds
from torch_gfshadow.plotting.panels import PANELS, draw_overlays, is_measured
from torch_gfshadow.plotting.series import Curve, constant_pace
from torch_gfshadow.plotting.style import FONT, finish, legend_above, new_figure
from torch_gfshadow.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    panels = [panel for panel in PANELS if panel.always or is_measured(runs.values(), panel)]
    heights = [panel.height for panel in panels]
    figure = new_figure(
        width=_COLUMN_INCHES * max(len(runs), 1.15) + 0.3, height=_ROW_INCHES * sum(heights) + 0.7
    )
    grid: Any = figure.subplots(
        len(panels), len(runs), squeeze=False, sharex="col", sharey="row", height_ratios=heights
    )
    for row, panel in zip(grid, panels, strict=True):
        for axes, (title, records) in zip(row, runs.items(), strict=True):
            panel.draw(axes, records)
            if panel.field in ("discrepancy", "lambda_min"):
                draw_bounds(axes, records, panel.field)
            if panel.field == "lambda_min" and axes.get_legend_handles_labels()[0]:
                legend_above(axes)
            if panel.field == "discrepancy":
                draw_overlays(axes, (overlays or {}).get(title) or {})
                legend_above(axes)
            finish(axes)
        panel.scale(row, runs.values())
        row[0].set_ylabel(panel.label, fontsize=FONT)
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


def _finish_column(top: Axes, bottom: Axes, title: str, records: Sequence[Record]) -> None:
    last = records[-1]
    top.set_title(title, fontsize=FONT + 2)
    bottom.set_xlabel("gradient descent step $k$", fontsize=FONT)
    bottom.set_xlim(0, max(last.step, 1))
    bottom.locator_params(axis="x", nbins=5, integer=True)
    if last.step > 0 and last.time > 0 and constant_pace(records):
        pace = last.time / last.step
        scale: Any = (lambda k: k * pace, lambda t: t / pace)
        clock = top.secondary_xaxis("top", functions=scale)
        clock.set_xlabel(f"flow time $t_k$ ($\\eta$ = {pace:g})", fontsize=FONT)
        clock.tick_params(labelsize=FONT - 1)
        clock.locator_params(axis="x", nbins=5)
