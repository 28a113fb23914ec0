"""The report's tables: the runs side by side, their history, what they were asked for, samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch_gfshadow.record import Record
from torch_gfshadow.report.runs import Run
from torch_gfshadow.report.verdict import judge, last_measured, last_telling
from torch_gfshadow.report.words import number, percent, share_of, with_bar
from torch_gfshadow.status import worst

_N_SAMPLES = 25
_N_CHANGES = 100


def overview(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return one labelled row per quantity, one cell per run."""
    rows = [list(_overview(run)) for run in runs]
    return [(label, [row[i][1] for row in rows]) for i, (label, _) in enumerate(rows[0])]


def _overview(run: Run) -> Iterator[tuple[str, str]]:
    last = run.last
    found = last_telling(run.records)
    value = found.discrepancy if found else None
    bar = found.solver_error if found else None
    by_purpose = (run.summary or {}).get("by_purpose", {}).get("grads", {})
    n_steps = max(last.step, 1)
    yield "verdict", judge(run.records, anew=bool(run.anew)).level
    yield "state", run.state
    yield "steps", f"{last.step:,}"
    yield "flow time t", number(last.time)
    yield "loss at the end", _latest(run, "loss")
    yield "distance from the start", _latest(run, "distance_from_init")
    yield "discrepancy ± error bar", with_bar(value, bar)
    yield "… of the distance travelled", percent(found.relative_discrepancy if found else None)
    yield "… error bar of the discrepancy", share_of(bar, value)
    yield "λ_min ± residual", _latest(run, "lambda_min", "lambda_min_residual")
    yield "λ_max ± residual", _latest(run, "lambda_max", "lambda_max_residual")
    yield "η·λ_max", _latest(run, "edge")
    yield "gradients per step", number(last.n_grad_evals / n_steps)
    purposes = ", ".join(f"{name} {count:,}" for name, count in by_purpose.items())
    yield "… by purpose", purposes or "–"
    yield "Hessian products per step", number(last.n_hvps / n_steps)
    yield "seconds in torch_gfshadow", number(last.seconds)
    yield "… over the rest of the loop's", percent((run.summary or {}).get("overhead"))
    yield "solver", last.solver
    yield "gradient audit", last.audit
    yield "worst status", worst(record.status for record in run.records).value


def _latest(run: Run, name: str, error: str | None = None) -> str:
    record = last_measured(run.records, name)
    if record is None:
        return "–"
    return with_bar(getattr(record, name), getattr(record, error) if error else None)


def history(run: Run) -> list[dict[str, str]]:
    """Return the stretches of steps between changes of solver, audit or status."""
    stretches: list[tuple[Record, Record]] = []
    for record in run.records:
        if stretches and _kind(stretches[-1][0]) == _kind(record):
            stretches[-1] = (stretches[-1][0], record)
        else:
            stretches.append((record, record))
    return [
        {
            "steps": f"{a.step:,}" if a is b else f"{a.step:,} – {b.step:,}",
            "flow": a.flow,
            "mode": a.mode,
            "solver": a.solver,
            "hvp": a.hvp,
            "audit": a.audit if a.audit == b.audit else f"{a.audit} … {b.audit}",
            "status": a.status.value.replace("_", " "),
            "detail": a.status_detail,
        }
        for a, b in stretches[:_N_CHANGES]
    ]


def _kind(record: Record) -> tuple[str, ...]:
    audit = record.audit.split(" ")[0]
    return (record.flow, record.mode, record.solver, record.hvp, audit, record.status.value)


def setup(run: Run) -> list[tuple[str, str]]:
    """Return what the run was asked for and with which packages."""
    header = run.header
    rows = [*_flat(header.get("configuration") or {})]
    if header.get("seed") is not None:
        rows.append(("seed", str(header["seed"])))
    rows += [(f"version of {name}", str(v)) for name, v in (header.get("versions") or {}).items()]
    return rows


def extras(run: Run) -> list[tuple[str, str, str]]:
    """Return (plugin or probe, quantity, last value) of everything measured beside the fields."""
    latest: dict[tuple[str, str], Any] = {}
    for record in run.records:
        for who, cells in record.extras.items():
            items = cells.items() if isinstance(cells, Mapping) else [("", cells)]
            latest |= {(str(who), str(key)): value for key, value in items}
    return [(who, key, _cell(value)) for (who, key), value in latest.items()]


def samples(run: Run) -> list[dict[str, str]]:
    """Return about 25 records, evenly spread, as the text of a table."""
    records = run.records
    stride = max(1, -(-len(records) // _N_SAMPLES))
    chosen = list(records[::stride])
    if chosen[-1] is not records[-1]:
        chosen.append(records[-1])
    return [
        {
            "step": f"{r.step:,}",
            "loss": number(r.loss, 4),
            "discrepancy": with_bar(r.discrepancy, r.solver_error),
            "relative": percent(r.relative_discrepancy),
            "lambda_min": with_bar(r.lambda_min, r.lambda_min_residual),
            "lambda_max": with_bar(r.lambda_max, r.lambda_max_residual),
            "edge": number(r.edge),
            "status": r.status.value.replace("_", " "),
        }
        for r in chosen
    ]


def _flat(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(key), _cell(item)) for key, item in value.items()]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return number(value, 6)
    if isinstance(value, str):
        return value
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 400 else f"{shown[:400]}…"
