"""Records to test with: plausible ones, and ones that are hard to write."""

from __future__ import annotations

from typing import Any

from torch_gfshadow.record import Record
from torch_gfshadow.status import Status


def make_record(step: int = 3, **fields: Any) -> Record:
    """Return a plausible record of step ``step``; ``fields`` replace what it holds."""
    values: dict[str, Any] = {
        "step": step,
        "time": 0.1 * step,
        "step_size": 0.1,
        "loss": 1.0 / (1 + abs(step)),
        "grad_norm": 0.5,
        "distance_from_init": 0.3,
        "discrepancy": 1e-3 / 3,
        "relative_discrepancy": 1e-2 / 9,
        "solver_error": 1e-5,
        "local_defect": 0.02,
        "lambda_min": -0.7,
        "lambda_min_residual": 1e-3,
        "lambda_max": 4.0,
        "lambda_max_residual": 1e-2,
        "edge": 0.4,
        "audit": "match",
    }
    return Record(**{**values, **fields})


def hostile_records() -> list[Record]:
    """Return records that are hard to write: gaps, NaN, infinities, text, nesting, extremes."""
    return [
        Record(step=0, time=0.0),
        make_record(1),
        make_record(2, loss=float("nan"), edge=float("inf"), discrepancy=5e-324, time=1 / 3),
        make_record(
            3,
            bounds={"theorem2": {"value": 0.1 + 0.2, "certified": False, "status": "ok"}},
            extras={"plugin": {"list": [1, 2.5, None], "text": 'a "quoted", cell\nλ → ∞'}},
            status=Status.UNRESOLVED,
            status_detail='two\nlines, "quoted", λ',
        ),
    ]
