"""One JSON-ready dictionary per run: what ``--json`` prints and the tables show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch_gfshadow.experiments.ratio_rows import RatioRow
from torch_gfshadow.experiments.verdict import Agreement
from torch_gfshadow.record import Record
from torch_gfshadow.report.verdict import judge, last_measured
from torch_gfshadow.status import worst

_LAST = (
    ("loss", ("loss",)),
    ("distance_from_init", ("distance_from_init",)),
    ("discrepancy", ("discrepancy", "solver_error", "relative_discrepancy")),
    ("lambda_min", ("lambda_min", "lambda_min_residual")),
    ("lambda_max", ("lambda_max", "lambda_max_residual")),
)


def summarise_records(
    records: Sequence[Record], summary: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Summarise a run with the shadow.

    Args:
        records: At least one record.
        summary: What ``shadow.summary()`` returned or the file's summary line says, if the run
            got that far; without it the evaluations are known in total only.

    Returns:
        Last measured values (``None`` where nothing was measured) and bounds, evaluations in
        total, by purpose and per step, seconds in all and over the rest of the loop's
        (``overhead``), worst status, and the verdict.
    """
    last = records[-1]
    result: dict[str, Any] = {"steps": last.step, "time": last.time}
    for name, fields in _LAST:
        source = last_measured(records, name)
        for item in fields:
            result[item] = None if source is None else getattr(source, item)
    value, bar = result["discrepancy"], result["solver_error"]
    result["relative_error"] = bar / value if value and bar is not None else None
    result |= _evaluations(last, summary)
    result["seconds"] = last.seconds
    result["overhead"] = (summary or {}).get("overhead")
    for name in ("audit", "flow", "solver", "hvp", "mode"):
        result[name] = getattr(last, name)
    result["status"] = str(worst(record.status for record in records))
    result["status_counts"] = dict(Counter(str(record.status) for record in records))
    result["bounds"] = _bounds(records)
    result["errors"] = list((summary or {}).get("errors", ()))
    result["verdict"] = asdict(judge(records))
    return result


def summarise_rows(
    rows: Sequence[RatioRow], n_grad_evals: int | None = None, extra: float | None = None
) -> dict[str, Any]:
    """Summarise a run of the ratio protocol.

    Args:
        rows: At least one row.
        n_grad_evals: Gradients evaluated; by default what the protocol needs up to the last row.
        extra: Gradients per step beyond the run at η; by default Σ r.

    Returns:
        The last row's values and the cost.
    """
    last = rows[-1]
    per_step = sum(last.distances)
    result = last.to_dict()
    result["steps"] = result.pop("step")
    result["n_grad_evals"] = (per_step + 1) * last.step if n_grad_evals is None else n_grad_evals
    result["extra_grad_evals_per_step"] = per_step if extra is None else extra
    return result


def summarise_agreement(agreement: Agreement) -> dict[str, Any]:
    """Return the comparison of the two protocols as JSON-ready values."""
    result = asdict(agreement)
    for side in ("shadow", "ratios"):
        value, bar = result[side]
        result[side] = {"discrepancy": value, "error": bar}
    return result


def _bounds(records: Sequence[Record]) -> dict[str, Any]:
    """Return, per bound, its last cell and the step it belongs to."""
    found: dict[str, Any] = {}
    for record in records:
        for name, cell in record.to_dict()["bounds"].items():
            found[name] = {"step": record.step, **cell}
    return found


def _evaluations(last: Record, summary: Mapping[str, Any] | None) -> dict[str, Any]:
    by_purpose = dict((summary or {}).get("by_purpose", {}).get("grads", {}))
    steps = max(last.step, 1)
    total = sum(by_purpose.values()) if by_purpose else last.n_grad_evals
    result: dict[str, Any] = {
        "n_grad_evals": total,
        "n_loss_evals": last.n_loss_evals,
        "n_hvps": last.n_hvps,
        "grad_evals_per_step": total / steps,
        "hvps_per_step": last.n_hvps / steps,
    }
    # bounds look at the network where there are probes
    probes = by_purpose.get("probes", 0) + by_purpose.get("bounds", 0)
    without = total - probes if by_purpose else None
    result["n_grad_evals_excluding_probes"] = without
    result["grad_evals_per_step_excluding_probes"] = None if without is None else without / steps
    result["n_grad_evals_by_purpose"] = by_purpose
    result["grad_evals_per_step_by_purpose"] = {k: n / steps for k, n in by_purpose.items()}
    return result
