"""Session: what a run was asked for, and what plugins see of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_gfshadow.errors import must
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.record import Record
from torch_gfshadow.status import Status

MODES = ("auto", "reference", "batch", "local", "passive")
ON_ERROR = ("disable", "raise")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """When things are due and what happens on errors; every value is checked at construction."""

    mode: str = "auto"
    every: int = 1
    probe_every: int | None = None
    resync_every: int | None = None
    window: int | None = None
    budget: float | None = None
    resolution: float | None = None
    audit: bool = True
    seed: int = 0
    on_error: str = "disable"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(must("mode", f"one of {MODES}", repr(self.mode), "Leave it out."))
        if self.on_error not in ON_ERROR:
            fix = "Use 'disable' in training and 'raise' in tests."
            raise ValueError(must("on_error", f"one of {ON_ERROR}", repr(self.on_error), fix))
        for name in ("every", "probe_every", "resync_every", "window"):
            value = getattr(self, name)
            if name != "every" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                fix = "Count optimizer steps: 1 is every step."
                raise ValueError(must(name, "a positive whole number", repr(value), fix))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            fix = "It seeds our own random numbers only: 0 will do."
            raise ValueError(must("seed", "a whole number", repr(self.seed), fix))
        if not isinstance(self.audit, bool):
            fix = "True compares the objective's gradient with the one the steps use."
            raise ValueError(must("audit", "True or False", repr(self.audit), fix))
        if self.window is not None and self.window > self.every and self.budget is None:
            fix = "A window lives shorter than the time between two starts: pass every=, too."
            raise ValueError(must("window", f"at most every = {self.every}", self.window, fix))
        if self.budget is not None and not (_is_number(self.budget) and 0.0 < self.budget < 1.0):
            fix = "0.05 asks for at most 5 % of the loop's own time."
            raise ValueError(must("budget", "between 0 and 1", repr(self.budget), fix))
        if self.resolution is not None and not (
            _is_number(self.resolution) and 0.0 < self.resolution < math.inf
        ):
            fix = "0.1 asks for a solver error of 10 % of the discrepancy."
            raise ValueError(must("resolution", "a positive number", repr(self.resolution), fix))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass
class Session:
    """One attached shadow, as hooks see it. Read it; nothing in here may be written by a plugin.

    Attributes:
        config: Everything ``attach`` was asked for, JSON-ready.
        ledger: What was evaluated so far, by purpose.
        records: The records so far.
        errors: What was caught so that training could go on.
        rank: Process rank; loggers run on rank 0.
    """

    config: Mapping[str, Any]
    ledger: Ledger
    records: list[Record] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def status(self) -> Status:
        """State of the last record."""
        return self.records[-1].status if self.records else Status.PENDING


def summarise(records: Sequence[Record], ledger: Ledger, loop_seconds: float) -> dict[str, Any]:
    """Return the totals of a run: discrepancies with bars, cost by purpose, worst status.

    Args:
        records: All records of the run.
        ledger: Its evaluations.
        loop_seconds: Wall time since attach, ours included.

    Returns:
        JSON-ready values; ``overhead`` is our seconds over the rest of the loop's.
    """
    from_steps = [r for r in records if r.discrepancy is not None]
    last = from_steps[-1] if from_steps else None
    largest = max(from_steps, key=lambda r: r.discrepancy or 0.0, default=None)
    newest = records[-1] if records else None
    steps = newest.step if newest else 0
    probes = ledger.grads["probes"] + ledger.grads["bounds"]  # where probes are, bounds are
    counts = ledger.by_purpose()
    rest = max(loop_seconds - ledger.seconds, 1e-9)
    return {
        "steps": steps,
        "time": newest.time if newest else 0.0,
        "final": _with_bar(last),
        "largest": _with_bar(largest),
        "lambda_min": _latest(records, "lambda_min"),
        "lambda_max": _latest(records, "lambda_max"),
        "audit": newest.audit if newest else "none",
        "flow": newest.flow if newest else "none",
        "solver": newest.solver if newest else "none",
        "hvp": newest.hvp if newest else "none",
        "n_grad_evals": ledger.n_grads,
        "n_loss_evals": ledger.n_losses,
        "n_hvps": ledger.n_hvps,
        "by_purpose": counts,
        "grad_evals_per_step": ledger.n_grads / steps if steps else None,
        "grad_evals_per_step_without_probes": (ledger.n_grads - probes) / steps if steps else None,
        "seconds": ledger.seconds,
        "overhead": ledger.seconds / rest,
        "status": _worst(records),
        "status_counts": _status_counts(records),
    }


def _with_bar(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    keys = ("step", "time", "discrepancy", "solver_error", "relative_discrepancy", "status")
    row = record.to_dict()
    return {key: row[key] for key in keys}


def _latest(records: Sequence[Record], name: str) -> float | None:
    values = (getattr(r, name) for r in reversed(records))
    return next((value for value in values if value is not None), None)


def _worst(records: Sequence[Record]) -> str:
    return max((r.status for r in records), key=lambda s: s.severity, default=Status.PENDING).value


def _status_counts(records: Sequence[Record]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        counts[record.status.value] = counts.get(record.status.value, 0) + 1
    return counts
