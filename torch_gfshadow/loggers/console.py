"""Console: a line every few records, for people who watch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from torch_gfshadow.loggers.base import not_started
from torch_gfshadow.loggers.memory import positive
from torch_gfshadow.record import Record
from torch_gfshadow.status import Status

# ASCII only: a log of a batch job may have any encoding.
_COLUMNS = (
    "time",
    "loss",
    "discrepancy",
    "solver_error",
    "lambda_min",
    "lambda_max",
    "edge",
)
_WIDTH = 12
_TITLE = f"{'step':>8} " + " ".join(f"{name:>{_WIDTH}}" for name in _COLUMNS) + "  status"
_LINES_PER_TITLE = 25


class ConsoleLogger:
    """Print one line per ``every`` records, and the summary at the end, to standard error.

    Plain lines, no cursor movement and no replaced ``sys.stdout``: it lives beside progress bars,
    and a pipe or a batch log gets the same text without colours. Output that nobody can take any
    more (a closed pipe) is dropped.

    Args:
        every: Print every so many records; ``"console:50"`` prints each fiftieth.
        console: Where to print; standard error if not given.

    Raises:
        ValueError: If ``every`` is not a positive integer.
    """

    def __init__(self, every: int | str = 1, console: Console | None = None) -> None:
        self.every = positive("every", every)
        self._given = console
        self._console: Console | None = None
        self._n_records = self._n_lines = 0
        self._last: Record | None = None

    def start(self, header: Mapping[str, Any]) -> None:
        """Begin; the titles come with the first line."""
        self._console = self._given or _QuietConsole(file=sys.stderr)
        self._n_records = self._n_lines = 0
        self._last = None

    def write(self, record: Record) -> None:
        """Print the record if it is its turn.

        Raises:
            GFShadowError: If the logger is not started.
        """
        if self._console is None:
            raise not_started(self)
        if self._n_records % self.every == 0:
            self._print(self._console, record)
        else:
            self._last = record
        self._n_records += 1

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Print the last record, if its turn had not come, and the summary."""
        console, self._console = self._console, None
        if console is None:
            return
        if self._last is not None:
            self._print(console, self._last)
        for name, value in summary.items():
            _print_line(console, f"{name}: {value}")

    def _print(self, console: Console, record: Record) -> None:
        if self._n_lines % _LINES_PER_TITLE == 0:
            _print_line(console, _TITLE, "bold")
        cells = " ".join(_number(getattr(record, name)) for name in _COLUMNS)
        line = f"{record.step:>8} {cells}  {record.status}"
        ahead = record.extras.get("budget", {}).get("next_step")
        line += "" if ahead is None else f", next number at about step {ahead}"
        _print_line(console, line, "" if record.status is Status.OK else "yellow")
        self._n_lines += 1
        self._last = None


class _QuietConsole(Console):
    def on_broken_pipe(self) -> None:
        # rich would raise SystemExit here, and end a training run because `| head` has left
        self.quiet = True


def _print_line(console: Console, text: str, style: str = "") -> None:
    ascii_text = text.encode("ascii", "backslashreplace").decode()
    console.print(ascii_text, style=style, markup=False, highlight=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.5g'):>{_WIDTH}}"
