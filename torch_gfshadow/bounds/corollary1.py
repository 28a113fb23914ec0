"""Corollary 1 of Elkabetz & Cohen: Theorem 3 for a globally smooth f ≥ 0, in three regimes.

With f β-smooth, m = −inf λ_min(∇²f) and c = 1/(√(2β³ f(θ(0))) + β²ε), GD stays within ε of the
flow up to time T for every step size below::

    m < 0:  c |m| (ε − ρ)
    m = 0:  c (ε − ρ) / T
    m > 0:  c m (ε − e^{mT} ρ) / (e^{mT} − 1)

**The printed case m > 0 is wrong**: it reads c m (ε − ρ) e^{mT}/(e^{mT} − 1), which tends to a
constant as T grows. On f = 1 − cos x, started e^{−(T−½)} from the maximum, the printed step size
leaves the flow by 0.95ε at T = 5, 2.2ε at T = 10 and 4.7ε at T = 20.
"""

from __future__ import annotations

import math

from torch_gfshadow.bounds._phi import (
    exp,
    log,
    log_add,
    log_integral,
    log_one_minus_exp,
    log_ratio,
)
from torch_gfshadow.bounds._scalars import (
    GIVEN,
    ROUNDING,
    constants,
    distance,
    finite,
    held,
    not_negative,
    positive,
    tolerance,
)
from torch_gfshadow.bounds.base import Evaluation
from torch_gfshadow.errors import AssumptionError, must


def corollary1(
    m: float,
    beta: float,
    f0: float,
    eps: float,
    init_dist: float,
    horizon: float,
    *,
    grad_norm: float | None = None,
    half_step: bool = False,
    constants_are: str = GIVEN,
) -> Evaluation:
    """Bound the step size by Corollary 1, with the case m > 0 corrected.

    A deep network is not globally smooth: there β and m must hold on the ε-balls around the flow
    up to T, and then the result is Theorem 3 with constants.

    Args:
        m: −inf λ_min(∇²f), at most β in size, in 1/t.
        beta: Smoothness β, positive, in 1/t.
        f0: f(θ(0)) − inf f, not negative.
        eps: ε, the distance from the flow to be kept, in θ.
        init_dist: ρ = ‖θ_0 − θ(0)‖, in θ.
        horizon: T > 0.
        grad_norm: ‖∇f(θ(0))‖, if known: the gradient is then also at most
            ‖∇f(θ(0))‖ e^{max(m,0)T} + βε, and the smaller of the two limits is used (derived).
        half_step: Use that within a step the defect grows from 0: doubles the limit where m ≥ 0
            and is not offered for m < 0 (derived).
        constants_are: ``"given"`` or ``"sampled"``, as in Theorem 3.

    Returns:
        ``eta``, the statement's strict upper limit; ``eta_exact_infimum``, Equation 7 with
        constant m, never smaller; ``log_eta`` of the former (``None`` for 0); ``feasible``.

    Raises:
        AssumptionError: If a number is out of range.

    References:
        Elkabetz & Cohen 2021, Corollary 1; the correction is derived.

    Example:
        >>> corollary1(m=0.0, beta=1.0, f0=2.0, eps=1.0, init_dist=0.0, horizon=2.0).value["eta"]
        0.16666666666666666
    """
    smoothness = positive("beta", beta, "It is the largest norm of the Hessian.")
    curvature = finite("m", m)
    if abs(curvature) > smoothness * (1.0 + ROUNDING):
        fix = "Both limit the same Hessian: raise beta."
        condition = f"at most beta = {smoothness!r} in size"
        raise AssumptionError(must("m", condition, repr(curvature), fix))
    loss = not_negative("f0", f0, "Subtract inf f; the corollary is about f ≥ 0.")
    radius, start = tolerance("eps", eps), distance("init_dist", init_dist)
    end = positive("horizon", horizon, "It is the time up to which GD follows the flow.")
    if half_step and curvature < 0.0:
        raise AssumptionError(
            must("half_step", "False for m < 0", True, "Use theorem3 with a constant m.")
        )
    log_gamma = _log_gradient(curvature, smoothness, loss, radius, end, grad_norm)
    log_c = -math.log(smoothness) - log_gamma + (math.log(2.0) if half_step else 0.0)
    log_eta = log_c + _statement(curvature, radius, start, end)
    log_exact = log_c + _exact(curvature, radius, start, end)
    value = {
        "eta": exp(log_eta),
        "eta_exact_infimum": exp(log_exact),
        "log_eta": log_eta if log_eta > -math.inf else None,
        "feasible": log_eta > -math.inf,
    }
    assumptions = (
        held("|m| ≤ β", f"m = {curvature:g}, β = {smoothness:g}"),
        held("f(θ(0)) ≥ inf f", f"f(θ(0)) − inf f = {loss:g}"),
        constants("β-smooth, λ_min ≥ −m: globally, or on the ε-balls around the flow to T",
                  constants_are),
    )  # fmt: skip
    status = "ok"
    if log_eta == -math.inf:
        status = "infeasible: the flows of the two starting points are not provably within eps"
    if log_eta == -math.inf < log_exact:  # ρ = ε, and the two flows approach each other
        status = "infeasible by the statement (rho = eps); eta_exact_infimum is not"
    return Evaluation(value, assumptions, status)


def _log_gradient(
    m: float, beta: float, f0: float, eps: float, horizon: float, grad_norm: float | None
) -> float:
    """Return log γ: ‖∇f‖² ≤ 2β(f − inf f) along the flow, and βε more within the ball."""
    within = math.log(beta) + math.log(eps)
    along = 0.5 * (math.log(2.0) + math.log(beta) + log(f0))
    if grad_norm is not None:
        start = log(not_negative("grad_norm", grad_norm, "It is the norm of a gradient."))
        along = min(along, start + max(m, 0.0) * horizon)
    return log_add(along, within)


def _statement(m: float, eps: float, start: float, horizon: float) -> float:
    """Return log(η/c) of the corollary's three cases; −∞ where there is none."""
    if m < 0.0:
        return log(eps - start) + math.log(-m)
    return _exact(m, eps, start, horizon)


def _exact(m: float, eps: float, start: float, horizon: float) -> float:
    """Return log of (ε − e^{mT}ρ)/∫_0^T e^{ms} ds; −∞ where there is none."""
    used = m * horizon + log_ratio(start, eps)
    if start > eps or used >= 0.0:
        return -math.inf
    return math.log(eps) + log_one_minus_exp(used) - log_integral(m, horizon)
