"""Tables: what a benchmark returns, printed as Markdown and written between a page's marks."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

SIZES = ("tiny", "quick", "full")
"""Of a benchmark: for the smoke test, for a few minutes of one core, for the record."""


@dataclass(frozen=True)
class Table:
    """Rows of one benchmark.

    Attributes:
        name: Names its place in the page.
        columns: Headings; the first is that of the method.
        rows: One cell per heading; numbers are formatted to three digits.
        note: What was run, in a sentence or two.
        curves: Label → (x, y), for a figure.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)

    def column(self, heading: str) -> dict[str, object]:
        """Return first cell → cell under ``heading``."""
        index = list(self.columns).index(heading)
        return {str(row[0]): row[index] for row in self.rows}

    def markdown(self) -> str:
        """Return the table, its note above it."""
        lines = [
            self.note,
            "",
            _line(self.columns),
            _line(["---", *("--:" for _ in self.columns[1:])]),
        ]
        return "\n".join([*lines, *(_line([shown(cell) for cell in row]) for row in self.rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def shown(cell: object) -> str:
    """Return a cell as text: three significant digits, a dash for what does not exist."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.1e}" if cell and not 1e-3 <= abs(cell) < 1e5 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def write(page: Path, table: Table | None, how: str) -> None:
    """Put a table between its marks in ``page``, with how it was made; without one, the machine.

    Raises:
        ValueError: If a mark is missing.
    """
    text, name = page.read_text(encoding="utf-8"), table.name if table is not None else "machine"
    mark = f"<!-- table: {name} -->"
    start = text.find(mark)
    end = text.find("<!-- end -->", start)
    if min(start, end) < 0:
        raise ValueError(f"{page} must hold '{mark}' and after it '<!-- end -->', it does not.")
    body = f"{table.markdown()}\n\nMade by {how}." if table is not None else f"{how}."
    text = f"{text[: start + len(mark)]}\n\n{body}\n\n{text[end:]}"
    page.write_text(text, encoding="utf-8")


def machine() -> str:
    """Return processor, cores, threads used and versions: what the times depend on."""
    cores = os.cpu_count()
    packages = ["torch", "torchdiffeq", "scipy", "torchode", "pyhessian", "hessian-eigenthings"]
    found = []
    for package in [*packages, "curvlinops-for-pytorch"]:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return (
        f"{_processor()}, {cores} cores, {torch.get_num_threads()} thread(s) used, "
        f"{platform.system()}, Python {platform.python_version()}, {', '.join(found)}"
    )


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1].strip() if found else platform.machine()


def seconds(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def paired_ratio(
    one: Callable[[], object], other: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Return the time of ``one`` over that of ``other``, taken in turn.

    The median of the ratios, and half their interquartile range: a busy machine slows both.
    """
    one()
    other()
    ratios = sorted(seconds(one) / seconds(other) for _ in range(repeats))
    if repeats < 4:
        return statistics.median(ratios), (ratios[-1] - ratios[0]) / 2
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, (high - low) / 2
