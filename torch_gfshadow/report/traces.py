"""Curves for the report's figures, as plotly's JSON. Colours are tokens that the page resolves.

Every curve carries the flow's ``times`` of its points: the page can put either on the axis.
``@blue`` or ``@run3/0.2`` become the theme's colours in the browser, so that one file serves light
and dark. Text is escaped for plotly, which reads a subset of HTML in names.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch_gfshadow.report.words import with_bar

N_COLOURS = 8
LIMIT = 1200
"""Points per curve. Longer ones keep the lowest and highest of every stretch."""

LARGEST = 1e300


class Points(NamedTuple):
    """Steps, values there, their error bars (0 where none is known), and the flow's time there."""

    steps: list[float]
    values: list[float]
    errors: list[float]
    times: list[float]


def thin(points: Points, limit: int = LIMIT) -> Points:
    """Keep about ``limit`` points: first, last, and both extremes of every stretch between."""
    n = len(points.steps)
    if n <= limit:
        return points
    width = math.ceil(n / (limit // 2))
    kept = {0, n - 1}
    for begin in range(0, n, width):
        stretch = range(begin, min(begin + width, n))
        kept.add(min(stretch, key=points.values.__getitem__))
        kept.add(max(stretch, key=points.values.__getitem__))
    order = sorted(kept)
    return Points(*([column[i] for i in order] for column in points))


def drawable(points: Points, log: bool) -> Points:
    """Keep what the axis can show: positive values on a logarithmic one, none beyond 1e300."""
    rows = [
        row
        for row in zip(*points, strict=True)
        if abs(row[1]) < LARGEST and (row[1] > 0 or not log)
    ]
    return Points(*([row[i] for row in rows] for i in range(4)))


def text(value: str) -> str:
    """Return a user's string as plotly shows it literally."""
    return html.escape(value, quote=False)


def line(
    name: str,
    points: Points,
    colour: str,
    *,
    dash: str = "solid",
    markers: bool = False,
    group: str | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Return a curve; hovering shows each value with its error bar."""
    shown = [
        with_bar(v, e) if e else with_bar(v, None)
        for v, e in zip(points.values, points.errors, strict=True)
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers" if markers or len(points.steps) == 1 else "lines",
        "name": text(name),
        "x": points.steps,
        "y": points.values,
        "customdata": shown,
        "times": points.times,
        "hovertemplate": "%{customdata}",
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"color": colour, "size": 5},
        "legendgroup": text(group or name),
        **extra,
    }


def band(
    points: Points, colour: str, log: bool, group: str, limit: float | None = None, **extra: Any
) -> dict[str, Any] | None:
    """Return the error bars of a curve as a filled band, ``None`` if there are none.

    Args:
        points: The curve.
        colour: Its token.
        log: Whether the axis is logarithmic, where the band ends at a thousandth of the value.
        group: The curve's legend group: both are shown and hidden together.
        limit: The band ends there, or a bar that knows nothing would stretch the axis.
        extra: More of plotly's keys.
    """
    if not any(points.errors):
        return None
    rows = list(zip(*points, strict=True))
    low = [max(v - e, 1e-3 * v) if log else v - e for _, v, e, _ in rows]
    high = [min(v + e, limit) if limit is not None else v + e for _, v, e, _ in rows]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": points.steps + points.steps[::-1],
        "y": high + low[::-1],
        "times": points.times + points.times[::-1],
        "fill": "toself",
        "fillcolor": f"{colour}/0.22",
        "line": {"width": 0, "color": colour},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": text(group),
        **extra,
    }


def split_where(points: Points, keep: Sequence[bool]) -> tuple[Points, Points]:
    """Return the points where ``keep`` is true and those where it is not, gaps as ``None``.

    The second curve reaches to its neighbours on the first, so that a single point shows.
    """
    last = len(keep) - 1
    joined = [
        not (keep[max(i - 1, 0)] and k and keep[min(i + 1, last)]) for i, k in enumerate(keep)
    ]

    def masked(wanted: Sequence[bool]) -> Points:
        values: list[Any] = [v if w else None for v, w in zip(points.values, wanted, strict=True)]
        return points._replace(values=values)

    return masked(keep), masked(joined)
