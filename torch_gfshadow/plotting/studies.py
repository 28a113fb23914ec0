"""Panels of the studies: curves on a logarithmic axis, and dots that compare methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch_gfshadow.plotting.style import (
    BLUE,
    FONT,
    GREEN,
    GREY,
    MARKERS,
    PURPLE,
    VERMILLION,
    finish,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (VERMILLION, BLUE, GREEN, PURPLE, GREY, "#E69F00", "#56B4E9")


def draw_curves(
    axes: Axes,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    title: str = "",
    styles: Mapping[str, Mapping[str, Any]] | None = None,
    log_x: bool = False,
) -> None:
    """Draw label → (x, y) on a logarithmic y axis; what is not finite is left out."""
    for index, (label, (xs, ys)) in enumerate(curves.items()):
        style = {"color": COLOURS[index % len(COLOURS)], "lw": 1.3}
        axes.plot(xs, ys, label=label, **{**style, **(styles or {}).get(label, {})})
    axes.set_yscale("log")
    if log_x:
        axes.set_xscale("log")
    axes.set_xlabel(x, fontsize=FONT)
    axes.set_ylabel(y, fontsize=FONT)
    axes.set_title(title, fontsize=FONT + 1, loc="left")
    axes.legend(fontsize=FONT - 1, frameon=False)
    axes.tick_params(which="both", labelsize=FONT - 1)
    finish(axes)


def draw_dots(
    axes: Axes,
    values: Mapping[str, Mapping[str, float | None]],
    *,
    x: str,
    title: str = "",
    annotate: bool = False,
    hollow: Sequence[str] = (),
    styles: Mapping[str, int] | None = None,
) -> None:
    """Draw method → group → value as dots, one line per group, on a logarithmic x axis.

    Args:
        axes: Where to.
        values: Method → group → positive value; ``None`` and 0 are left out.
        x: Label of the axis.
        title: Title of the panel.
        annotate: Whether to write each value beside its dot.
        hollow: Methods drawn hollow: estimates, beside filled certificates.
        styles: Method → which colour and marker, to match another panel; by default in order.
    """
    groups = list(dict.fromkeys(group for found in values.values() for group in found))
    for place, (method, found) in enumerate(values.items()):
        index = (styles or {}).get(method, place)
        colour = COLOURS[index % len(COLOURS)]
        points = [(v, groups.index(g)) for g, v in found.items() if v]
        axes.plot(
            [v for v, _ in points],
            [row for _, row in points],
            ls="none",
            marker=MARKERS[index % len(MARKERS)],
            ms=6,
            color=colour,
            mfc="white" if method in hollow else colour,
            label=method,
        )
        if annotate:
            for value, row in points:
                axes.annotate(
                    f"{value:.1e}" if value < 1e-3 else f"{value:.2g}",
                    (value, row),
                    xytext=(0, 8 if index % 2 else -14),  # neighbours do not cover each other
                    textcoords="offset points",
                    ha="center",
                    fontsize=FONT - 2,
                    color=colour,
                )
    axes.set_xscale("log")
    axes.set_yticks(range(len(groups)), groups, fontsize=FONT)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel(x, fontsize=FONT)
    axes.set_title(title, fontsize=FONT + 1, loc="left")
    finish(axes)
