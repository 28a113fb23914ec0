"""Columns out of records: what was measured, with its error, ready to be drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch_gfshadow.record import Record

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and the values there."""


def series(
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


def positive(
    steps: Sequence[float], values: Sequence[float], errors: Sequence[float]
) -> tuple[list[float], list[float], list[float]]:
    """Keep what a logarithmic axis can show."""
    rows = [row for row in zip(steps, values, errors, strict=True) if row[1] > 0]
    return [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]


def constant_pace(records: Sequence[Record]) -> bool:
    """Return whether flow time is proportional to the step, as without a schedule."""
    last = records[-1]
    return all(
        math.isclose(r.time * last.step, r.step * last.time, rel_tol=1e-6, abs_tol=1e-9)
        for r in records
    )
