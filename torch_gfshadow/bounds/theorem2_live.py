"""Theorem 2 along a run, from what the records hold: the Fundamental-Theorem bound, estimated.

Statement and recursion are in theorem2.py.
"""

from __future__ import annotations

import math

from torch import Tensor

from torch_gfshadow.bounds.base import Assumption, BoundValue
from torch_gfshadow.bounds.theorem2 import advance
from torch_gfshadow.bounds.view import View
from torch_gfshadow.network import NotCovered
from torch_gfshadow.record import Record

# The flow of one objective; in the other modes the field changes with every batch.
_MODES = ("reference", "passive")


class Theorem2:
    """Theorem 2 along a run; always an estimate.

    δ of a step is the distance of the gradients at its two ends, m between two probes the larger
    of −(λ_min − residual) there: samples, where the theorem wants the largest values between flow
    and polygon. A step's δ is known one record later, when the next gradient has been used, so
    the last step borrows that of the step before; steps between two records take the larger δ of
    the two. At probes the value is final up to the probe before.

    The theorem needs f ∈ C² on the segments between flow and polygon. On a deep linear network
    that holds; on one with activations it ends where the first of them changes, and from there
    on the value is the recursion alone, of kind ``"failed"``.
    """

    name = "theorem2"
    requires = frozenset({"local_defect", "lambda_min", "lambda_min_residual"})

    def __init__(self) -> None:
        self._log_radius = -math.inf  # where the last piece of the pending ones begins
        # duration, δ and m since there; NaN where it is not known yet
        self._pieces: list[tuple[float, float, float]] = []
        self._step: int | None = None
        self._time = 0.0
        self._defect = math.nan
        self._single = True
        self._m = -math.inf
        self._probed = 0
        self._widest = 1
        self._gap = ""
        self._pattern: Tensor | None = None
        self._smooth = ("not checked", False, False)

    def update(self, record: Record, view: View | None = None) -> BoundValue:
        """Return the estimate at ``record.time``; at the first record both curves meet."""
        self._gap = self._gap or self._gap_before(record)
        if self._gap:
            return self._none(f"No bound: {self._gap}.")
        is_first = self._step is None
        if not is_first:
            self._add(record)
        self._step, self._time = record.step, record.time
        self._defect = math.nan if record.local_defect is None else record.local_defect
        if view is not None:
            self._look(view)
        if not _is_number(record.lambda_min):
            return self._none("No value between probes: λ_min is not known here.")
        self._settle(record)
        if is_first:
            return BoundValue(-math.inf, self._assumptions())
        duration, defect, m = self._pieces[-1]
        if math.isnan(defect):
            return self._none("No bound yet: it begins at the second step.")
        return BoundValue(advance(self._log_radius, duration, m, defect), self._assumptions())

    def _add(self, record: Record) -> None:
        """Append the steps since the last record as one piece, and settle δ of the one before."""
        n_steps = record.step - (self._step or 0)
        defect = math.nan if record.local_defect is None else record.local_defect
        if n_steps == 1:
            if not self._pieces:
                defect = math.nan  # of a step before the start
            elif not math.isnan(defect):
                # this is the defect of the step before: exactly, if that was a piece of its own
                duration, guess, m = self._pieces[-1]
                settled = defect if self._single else max(guess, defect)
                self._pieces[-1] = duration, settled, m
        else:
            defect = defect if math.isnan(self._defect) else max(defect, self._defect)
            if self._pieces and math.isnan(self._pieces[-1][1]):
                self._pieces[-1] = self._pieces[-1][0], defect, self._pieces[-1][2]
        self._single = n_steps == 1
        given = record.step_size if self._single and _is_number(record.step_size) else None
        duration = record.time - self._time if given is None else given
        self._pieces.append((duration, defect, math.nan))

    def _settle(self, record: Record) -> None:
        """Give the pieces since the last probe their m, and sum up all but the last."""
        assert record.lambda_min is not None
        here = (record.lambda_min_residual or 0.0) - record.lambda_min
        m, self._m = max(self._m, here), here
        self._widest = max(self._widest, record.step - self._probed)
        self._probed = record.step
        known = [(h, d, m if math.isnan(old) else old) for h, d, old in self._pieces]
        for duration, defect, rate in known[:-1]:
            self._log_radius = advance(self._log_radius, duration, rate, defect)
        self._pieces = known[-1:]

    def _gap_before(self, record: Record) -> str:
        """Say why this record cannot follow the last one; nothing if it can."""
        step = record.step
        if record.mode not in _MODES:
            return f"mode {record.mode} follows a flow that changes with every batch"
        if self._step is None:
            missing = not _is_number(record.lambda_min)
            return f"step {step} has no lambda_min; probe the first record" if missing else ""
        if step <= self._step:
            return f"step {step} follows step {self._step}"
        if step > 1 and not _is_number(record.local_defect):
            return f"step {step} has no local_defect"
        return ""

    def _look(self, view: View) -> None:
        """Find out whether flow and iterate can still be on one smooth piece of f."""
        checked, certain, failed = self._smooth
        if certain or failed or checked.startswith("not checkable"):
            return
        network, time = view.network, view.record.time
        if isinstance(network, NotCovered):
            self._smooth = f"not checkable, {network.reason}", False, False
        elif network.linear:
            self._smooth = "held, no activation has a kink", True, False
        else:
            before, self._pattern = self._pattern, network.pattern
            changed = 0 if before is None else int((before != network.pattern).sum())
            if changed:
                of = f"{changed:,} of {len(network.pattern):,} activations"
                self._smooth = f"failed, {of} had changed by t = {time:.4g}", False, True
                self._pattern = None
            else:
                self._smooth = f"no activation had changed by t = {time:.4g}", False, False

    def _assumptions(self) -> tuple[Assumption, ...]:
        checked, certain, failed = self._smooth
        between = (
            "" if self._widest == 1 else f", the larger of two up to {self._widest} steps apart"
        )
        return (
            Assumption("f ∈ C² between iterate and flow", checked, certain, failed),
            Assumption(
                "−λ_min ≤ m between iterate and flow",
                f"Ritz values at the iterates{between}",
                certain=False,
            ),
            Assumption(
                "‖θ̄' + ∇f(θ̄)‖ ≤ δ along the step",
                "measured at the ends of the steps before records",
                certain=False,
            ),
        )

    def _none(self, status: str) -> BoundValue:
        return BoundValue(math.inf, self._assumptions(), status)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
