"""Theorem 2 where ‖∇²f‖ ≤ β everywhere: nothing is sampled, so the bound is certified.

On the step from θ_k the polygon is θ_k − s·g_k, and by smoothness its defect is at most βs‖g_k‖.
With −λ_min ≤ m everywhere the discrepancy obeys R' ≤ mR + βs‖g_k‖, hence::

    R_{k+1} = e^{mη} R_k + β‖g_k‖ ∫_0^η e^{m(η−s)} s ds
"""

from __future__ import annotations

import math

from torch_gfshadow.bounds import Assumption, BoundValue
from torch_gfshadow.errors import must
from torch_gfshadow.record import Record

_ROUNDING = 1.0 + 1e-12


class LipschitzBound:
    """Bound the discrepancy of gradient descent on an objective whose Hessian is bounded.

    Corollary 1 of Elkabetz & Cohen assumes this to choose a step size beforehand; here the same
    assumption bounds the run as it goes, with the gradients it used. β is yours to know: logistic
    regression has ‖X‖²/4n, for example. Deep networks are not globally smooth.

    A Ritz value above β proves β wrong: from then on there is no bound, and the status says so.
    Every step must be recorded.

    Args:
        smoothness: β ≥ ‖∇²f(θ)‖ for all θ, in f/θ².
        curvature: m ≥ −λ_min(∇²f(θ)) for all θ; β if not given, 0 where f is convex, −μ where it
            is μ-strongly convex.

    Raises:
        ValueError: If β is not positive and finite, or |m| > β.

    References:
        Elkabetz & Cohen 2021, arXiv:2107.06608, Theorem 2 and Corollary 1.
    """

    name = "lipschitz"
    requires = frozenset({"grad_norm", "step_size"})

    def __init__(self, smoothness: float | str, curvature: float | None = None) -> None:
        self.smoothness = _number(smoothness)
        if not 0.0 < self.smoothness < math.inf:
            fix = "Pass an upper limit of ‖∇²f‖, 4.0 say."
            raise ValueError(must("smoothness", "positive and finite", repr(smoothness), fix))
        self.curvature = self.smoothness if curvature is None else float(curvature)
        if not abs(self.curvature) <= self.smoothness:
            fix = "−λ_min cannot exceed ‖∇²f‖. Pass 0.0 if f is convex."
            condition = f"between −{self.smoothness:g} and {self.smoothness:g}"
            raise ValueError(must("curvature", condition, repr(curvature), fix))
        self._radius = 0.0
        self._step: int | None = None
        self._audited, self._refuted = True, False
        self._flaw = ""

    def update(self, record: Record) -> BoundValue:
        """Return the bound at ``record.time``."""
        self._flaw = self._flaw or self._flaw_of(record)
        self._refuted = self._refuted or record.audit not in ("match", "pending")
        self._audited = record.audit == "match" and not self._refuted
        if self._flaw:
            return BoundValue(math.inf, self._assumptions(), f"No bound: {self._flaw}.")
        if self._step is not None:
            assert record.step_size is not None
            assert record.grad_norm is not None
            self._radius = self._advanced(record.step_size, record.grad_norm)
        self._step = record.step
        log = math.log(self._radius) if self._radius > 0.0 else -math.inf
        status = "ok" if math.isfinite(self._radius) else "No bound: it exceeds every float."
        return BoundValue(log, self._assumptions(), status)

    def _advanced(self, step_size: float, grad_norm: float) -> float:
        z = self.curvature * step_size
        try:
            growth = math.exp(z)
        except OverflowError:
            return math.inf
        defect = self.smoothness * grad_norm * step_size**2 * _second_integral(z)
        return (growth * self._radius + defect) * _ROUNDING

    def _flaw_of(self, record: Record) -> str:
        for end in (record.lambda_max, record.lambda_min):
            if end is not None and abs(end) > self.smoothness * (1.0 + 1e-6):
                return f"‖∇²f‖ is at least {abs(end):.6g} at step {record.step}, so β is too small"
        if record.lambda_min is not None and -record.lambda_min > self.curvature + (
            1e-6 * self.smoothness
        ):
            return f"−λ_min is {-record.lambda_min:.6g} at step {record.step}, so m is too small"
        if record.flow not in ("gradient_flow", "none"):
            return f"the flow followed is {record.flow}"
        if self._step is None:
            return ""
        if record.step != self._step + 1:
            return f"step {record.step} follows step {self._step}; record every step"
        for name in ("step_size", "grad_norm"):
            value = getattr(record, name)
            if value is None or not math.isfinite(value):
                return f"step {record.step} has no {name}"
        return ""

    def _assumptions(self) -> tuple[Assumption, ...]:
        audit = "gradient audit" if self._audited else "not found by the gradient audit"
        return (
            Assumption(f"‖∇²f‖ ≤ {self.smoothness:g} everywhere", "given", certain=True),
            Assumption(f"−λ_min(∇²f) ≤ {self.curvature:g} everywhere", "given", certain=True),
            Assumption("each step uses ∇f(θ_k)", audit, certain=self._audited),
        )


def _second_integral(z: float) -> float:
    """Return ∫_0^1 e^{z(1−s)} s ds = (e^z − 1 − z)/z², ½ at 0."""
    if abs(z) < 0.5:
        return math.fsum(z**k / math.factorial(k + 2) for k in range(16))
    return (math.expm1(z) - z) / z**2


def _number(value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan
