"""What a running experiment shows: a live bar on a terminal, ten lines elsewhere; and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from torch_gfshadow.experiments.ratio_rows import RatioRow
from torch_gfshadow.record import Record

_N_LINES = 10


class Display:
    """Show how far a run is and what it measured last.

    Args:
        console: Where to; it should write to stderr, so that stdout stays machine-readable.
        title: What runs.
        steps: Number of steps in total.
    """

    def __init__(self, console: Console, title: str, steps: int) -> None:
        self._console, self._title, self._steps = console, title, steps
        self._values: dict[str, str] = {}
        self._next_line = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task(title, total=steps)
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=5)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def record(self, record: Record) -> None:
        """Show a record of the shadow; values it did not measure keep their last state."""
        if record.discrepancy is not None:
            bar = "" if record.solver_error is None else f" ± {record.solver_error:.0e}"
            self._values["discrepancy"] = f"{record.discrepancy:.2e}{bar}"
        for name, symbol in (("lambda_min", "λ_min"), ("lambda_max", "λ_max")):
            value = getattr(record, name)
            if value is not None:
                self._values[symbol] = f"{value:.3g}"
        self._advance(record.step)

    def row(self, row: RatioRow) -> None:
        """Show a row of the ratio protocol."""
        for ratio, distance in row.distances.items():
            self._values[f"to η/{ratio}"] = f"{distance:.2e}"
        self._advance(row.step)

    def _advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)
        if not self._console.is_terminal and step >= self._next_line:
            line = f"{self._title}: step {step:,} of {self._steps:,}  {self._text()}"
            self._console.print(line, highlight=False, soft_wrap=True)
            self._next_line = step + max(1, self._steps // _N_LINES)

    def _text(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self._values.items())

    def _render(self) -> RenderableType:
        return Group(self._bar, Text("  " + self._text(), style="dim"))


class GentleInterrupt:
    """Turn the first Ctrl-C into a stop between two records; the second stops at once.

    Outside the main thread, or where someone else handles SIGINT, nothing is changed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._requested = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._requested:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
