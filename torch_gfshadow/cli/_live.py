"""What ``gfshadow tail`` shows of a run on a terminal: latest values, where they come from."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from torch_gfshadow.record import Record
from torch_gfshadow.report.words import number, percent, printable, with_bar
from torch_gfshadow.status import Status

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 40
_KEPT = 2000

Value = Callable[[Record], str]

_ROWS: tuple[tuple[str, str, Value], ...] = (
    ("loss", "loss", lambda r: number(r.loss, 4)),
    ("loss of the flow", "shadow_loss", lambda r: number(r.shadow_loss, 4)),
    ("distance from start", "distance_from_init", lambda r: number(r.distance_from_init)),
    ("discrepancy", "discrepancy", lambda r: with_bar(r.discrepancy, r.solver_error)),
    ("… of the distance", "relative_discrepancy", lambda r: percent(r.relative_discrepancy)),
    ("λ_min", "lambda_min", lambda r: with_bar(r.lambda_min, r.lambda_min_residual)),
    ("λ_max", "lambda_max", lambda r: with_bar(r.lambda_max, r.lambda_max_residual)),
    ("η·λ_max (edge: 2)", "edge", lambda r: number(r.edge)),
)


class LiveView:
    """The state of a followed run. Values that the last record lacks keep their latest state.

    Args:
        name: What is followed.
    """

    def __init__(self, name: str) -> None:
        self.name = printable(name)
        self.last: Record | None = None
        self.finished = False
        self._latest: dict[str, Record] = {}
        self._past: dict[str, deque[float]] = {}

    def add(self, item: Record | Mapping[str, Any]) -> None:
        """Take in a record, header or summary."""
        if not isinstance(item, Record):
            self.finished = item.get("type") == "summary"
            return
        self.last = item
        for _, field, _ in _ROWS:
            value = getattr(item, field)
            if value is not None:
                self._latest[field] = item
                self._past.setdefault(field, deque(maxlen=_KEPT)).append(float(value))

    def __rich__(self) -> RenderableType:
        """Return the panel."""
        if self.last is None:
            return Text(f"{self.name}: waiting for records …", style="dim")
        last, table = self.last, Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for label, field, show in _ROWS:
            if field in self._latest:
                at = self._latest[field]
                stale = "" if at is last else f"step {at.step:,}"
                style = "bold yellow" if field == "edge" and (at.edge or 0.0) > 2.0 else ""
                trend = Text(sparkline(list(self._past[field])), style="cyan")
                table.add_row(label, Text(show(at), style=style), trend, Text(stale, style="dim"))
        for name, cell in last.bounds.items():
            kind = cell.get("kind") or (
                "certified" if cell.get("certified") is True else "estimate"
            )
            shown = f"{number(cell.get('value'))} ({kind})"
            table.add_row(Text(f"bound {printable(str(name))}"), Text(shown), Text(), Text())
        state = "finished" if self.finished else "running"
        # the state first: of a long path a terminal shows the beginning only
        title = Text(f"{state} · step {last.step:,} · t = {number(last.time)} · {self.name}")
        return Panel(Group(table, Text(), *self._footer(last)), title=title, title_align="left")

    def _footer(self, last: Record) -> list[Text]:
        steps = max(last.step, 1)
        cost = f"{number(last.n_grad_evals / steps)} gradients a step, {number(last.seconds)} s"
        how = f"solver {last.solver} · audit {last.audit} · {cost}"
        lines = [Text(printable(how), style="dim")]
        if last.status is not Status.OK:
            said = f"{last.status.value}: {last.status_detail or last.status.sentence}"
            lines.append(Text(printable(said), style="yellow"))
        return lines


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """Return the latest values as bars, logarithmic where all are positive and far apart."""
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) < 2:
        return ""
    size = max(1, math.ceil(len(finite) / width))
    means = [finite[i : i + size] for i in range(0, len(finite), size)]
    points = [sum(part) / len(part) for part in means]
    if min(points) > 0 and max(points) > 20 * min(points):
        points = [math.log(point) for point in points]
    low, high = min(points), max(points)
    span = (high - low) or 1.0
    return "".join(_BARS[min(7, int(8 * (point - low) / span))] for point in points)
