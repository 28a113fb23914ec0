"""What the report's figures share: the frame, the naming of curves, the words for the blind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch_gfshadow.plotting.series import series
from torch_gfshadow.record import Record
from torch_gfshadow.report.runs import Run
from torch_gfshadow.report.traces import N_COLOURS, Points
from torch_gfshadow.report.words import number, with_bar

Traces = list[dict[str, Any]]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        key: Its id in the page.
        title: Heading.
        caption: What is drawn and how to read it; our own words only.
        alt: The same for those who cannot see it, with the numbers; may hold users' names.
        spec: ``{"data": …, "layout": …, "times": …}``, the last per curve.
    """

    key: str
    title: str
    caption: str
    alt: str
    spec: dict[str, Any]


def points_of(records: Sequence[Record], name: str, error: str | None = None) -> Points:
    """Return the measured values of a field with those of its error field."""
    steps, values, errors = series(records, name, error)
    times = {float(r.step): r.time if math.isfinite(r.time) else float(r.step) for r in records}
    return Points(steps, values, errors, [times[step] for step in steps])


def labelled(runs: Sequence[Run]) -> Iterator[tuple[Run, str, Callable[[str], str]]]:
    """Yield every run with its colour and what its curves are called."""
    for index, run in enumerate(runs):
        prefix = f"{run.name}: " if len(runs) > 1 else ""

        def label(what: str, prefix: str = prefix) -> str:
            return prefix + what

        yield run, f"@run{index % N_COLOURS}", label


def present(trace: dict[str, Any] | None) -> Traces:
    """Return a curve that may be missing as a list of at most one."""
    return [] if trace is None else [trace]


def in_words(runs: Sequence[Run], field: str, error: str | None, what: str) -> str:
    """Say where a field starts, ends and peaks in every run."""
    said = []
    for run in runs:
        points = points_of(run.records, field, error)
        if not points.steps:
            continue
        top = max(range(len(points.values)), key=points.values.__getitem__)
        last = with_bar(points.values[-1], points.errors[-1] if error else None)
        said.append(
            f"{run.name}: {what} starts at {number(points.values[0])}, is {last} at step "
            f"{points.steps[-1]:,.0f}, and largest, {number(points.values[top])}, at step "
            f"{points.steps[top]:,.0f}."
        )
    return " ".join(said)


def axis(title: str) -> dict[str, Any]:
    """Return an axis."""
    return {"title": {"text": title}, "gridcolor": "@grid", "zerolinecolor": "@grid"}


def _logarithmic(traces: Traces) -> dict[str, Any]:
    # whole powers of ten where there are several, 1, 2 and 5 where there are not
    values = [v for trace in traces for v in trace["y"] if v is not None and v > 0]
    decades = math.log10(max(values)) - math.log10(min(values)) if values else 0.0
    ticks = math.ceil(decades / 10) if decades >= 2 else "D2"
    return {"type": "log", "exponentformat": "power", "dtick": ticks}


def layout(title: str, traces: Traces, *, log: bool = False, height: int = 380) -> dict[str, Any]:
    """Return the frame of a figure over the steps."""
    return {
        "height": height,
        "margin": {"l": 70, "r": 16, "t": 12, "b": 48},
        "hovermode": "x unified",
        "hoverlabel": {"namelength": -1, "bgcolor": "@paper", "font": {"color": "@ink"}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "paper_bgcolor": "@paper",
        "plot_bgcolor": "@paper",
        "font": {"color": "@ink", "family": "system-ui, sans-serif", "size": 13},
        "xaxis": {**axis("gradient descent step k"), "hoverformat": ",d"},
        "yaxis": axis(title) | (_logarithmic(traces) if log else {}),
    }


def across(frame: dict[str, Any], height: float, words: str, log: bool = False) -> None:
    """Draw a dashed line across a figure, with a word on what it means."""
    frame.setdefault("shapes", []).append(
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height,
         "line": {"color": "@ink", "width": 1.5, "dash": "dash"}},
    )  # fmt: skip
    # plotly places annotations, but not shapes, by the logarithm
    frame.setdefault("annotations", []).append(
        {"xref": "paper", "x": 1, "y": math.log10(height) if log else height, "text": words,
         "showarrow": False, "xanchor": "right", "yanchor": "bottom", "font": {"color": "@ink"},
         "bgcolor": "@paper"},
    )  # fmt: skip
