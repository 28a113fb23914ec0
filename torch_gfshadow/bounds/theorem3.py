"""Theorem 3 of Elkabetz & Cohen (Equation 7): the step size that keeps GD within ε of the flow.

Let m(t) ≥ −λ_min, β ≥ ‖∇²f‖ and γ ≥ ‖∇f‖ on the balls of radius ε around θ(t), 0 ≤ t ≤ T. Then
‖θ_k − θ(t_k)‖ ≤ ε up to T for every step size::

    η < inf_{0<t≤T} (ε − e^{μ(t)} ρ) / (βγ I(t)),   μ' = m,  I' = mI + 1,  I(0) = 0

where ρ = ‖θ_0 − θ(0)‖. (The arXiv text prints the inner integral of I from the wrong limit; it
runs from t' to t.) With m constant on pieces the quotient is monotone on each, so that the
infimum is the smallest value at the breaks: exact, no grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch_gfshadow.bounds._phi import exp, log_add, log_integral, log_one_minus_exp, log_ratio
from torch_gfshadow.bounds._scalars import (
    GIVEN,
    constants,
    distance,
    held,
    pieces,
    positive,
    tolerance,
)
from torch_gfshadow.bounds.base import Evaluation
from torch_gfshadow.errors import AssumptionError, must

Curve = float | Sequence[float]


def theorem3(
    breaks: Sequence[float],
    m: Curve,
    beta: Curve,
    gamma: Curve,
    eps: float,
    init_dist: float = 0.0,
    *,
    half_step: bool = False,
    constants_are: str = GIVEN,
) -> Evaluation:
    """Bound the step size by Equation 7, for m constant on pieces.

    Args:
        breaks: Times 0 ≤ t_0 ≤ … ≤ t_K = T.
        m: Upper limit of −λ_min on each piece, over the ε-ball around the flow, in 1/t.
        beta: Upper limit of ‖∇²f‖, one for all or one per piece, in 1/t. With several, a step
            may begin in the piece before, so the answer is at most the shortest piece.
        gamma: Upper limit of ‖∇f‖, likewise, in θ/t.
        eps: ε, the distance from the flow to be kept, in θ.
        init_dist: ρ = ‖θ_0 − θ(0)‖, in θ.
        half_step: Use that within a step the defect grows from 0 (derived, not in the paper): the
            limit doubles where m ≥ 0, and grows less where m < 0.
        constants_are: ``"given"``: m, β, γ hold on the whole balls, by proof. ``"sampled"``: they
            are the largest of some samples, and so the result is an estimate.

    Returns:
        ``feasible``, the strict upper limit ``eta`` (0 if not feasible), ``log_eta`` and the time
        ``argmin_t`` that decides (both ``None`` if not feasible).

    Raises:
        AssumptionError: If a number is out of range or a length disagrees.

    References:
        Elkabetz & Cohen 2021, Theorem 3 and Equation 7.

    Example:
        Where m = 0 the limit is (ε − ρ)/(βγT):

        >>> theorem3([0.0, 2.0], m=0.0, beta=1.0, gamma=1.0, eps=0.1).value["eta"]
        0.05
    """
    times, (rates, betas, gammas) = pieces(breaks, ("m", m), ("beta", beta), ("gamma", gamma))
    fix = "It is the largest norm of the {} near the flow."
    forces = [
        math.log(positive(f"beta[{i}]", b, fix.format("Hessian")))
        + math.log(positive(f"gamma[{i}]", g, fix.format("gradient")))
        for i, (b, g) in enumerate(zip(betas, gammas, strict=True))
    ]
    radius, start = tolerance("eps", eps), distance("init_dist", init_dist)
    log_eta, argmin = _equation7(times, rates, forces, radius, start)
    varies = max(forces) > min(forces)
    if half_step and varies:
        fix = "The argument needs one beta and one gamma; pass the largest, or half_step=False."
        raise AssumptionError(must("half_step", "False with several beta·gamma", True, fix))
    if half_step and argmin is not None:
        log_eta = _half_step(log_eta, max(0.0, -min(rates)))
    if argmin is not None and varies:
        shortest = min(end - begin for begin, end in pairwise(times))
        log_eta = min(log_eta, math.log(shortest))
    return limit(log_eta, argmin, _assumptions(radius, start, constants_are))


def limit(log_eta: float, argmin_t: float | None, assumptions: Any) -> Evaluation:
    """Return a step size limit, or its absence, as an evaluation."""
    feasible = argmin_t is not None
    value = {
        "feasible": feasible,
        "eta": exp(log_eta) if feasible else 0.0,
        "log_eta": log_eta if feasible else None,
        "argmin_t": argmin_t,
    }
    infeasible = "infeasible: the flows of the two starting points are not provably within eps"
    return Evaluation(value, assumptions, "ok" if feasible else infeasible)


def _equation7(
    times: Sequence[float],
    rates: Sequence[float],
    log_forces: Sequence[float],
    eps: float,
    start: float,
) -> tuple[float, float | None]:
    """Return log η and the break that decides; the latter is ``None`` if there is no η."""
    if start > eps:  # with m < 0 the breaks alone would miss it
        return -math.inf, None
    smallest, argmin = math.inf, None
    mu, log_defect = 0.0, -math.inf  # log of βγI, which obeys J' = mJ + βγ
    log_eps, log_share = math.log(eps), log_ratio(start, eps)
    # a step that ends in a piece may have begun in the one before it
    strongest = [max(log_forces[max(0, i - 1) : i + 1]) for i in range(len(log_forces))]
    for (begin, end), rate, log_force in zip(pairwise(times), rates, strongest, strict=True):
        duration = end - begin
        mu += rate * duration
        log_defect = log_add(rate * duration + log_defect, log_force + log_integral(rate, duration))
        used = mu + log_share  # log of ρ(t)/ε
        if used >= 0.0:
            return -math.inf, None
        log_eta = log_eps + log_one_minus_exp(used) - log_defect
        if log_eta < smallest:
            smallest, argmin = log_eta, end
    return smallest, argmin


def _half_step(log_eta: float, contraction: float) -> float:
    """Solve η e^{aη} = 2 η_7 for log η: Chebyshev's integral inequality, with −m ≤ a."""
    target = log_eta + math.log(2.0)
    found = min(target, 700.0)
    for _ in range(2000):  # y + a e^y is convex and increasing: Newton comes from the right
        growth = contraction * exp(found)
        step = (found + growth - target) / (1.0 + growth)
        found -= step
        if abs(step) <= 1e-15 * max(1.0, abs(found)):
            break
    return found


def _assumptions(eps: float, start: float, constants_are: str) -> tuple[Any, ...]:
    return (
        held("ε > 0 and ρ ≥ 0", f"ε = {eps:g}, ρ = {start:g}"),
        constants("−λ_min ≤ m, ‖∇²f‖ ≤ β, ‖∇f‖ ≤ γ on the ε-balls around the flow", constants_are),
        constants("f ∈ C² on the ε-balls (no ReLU kink in them)", GIVEN),
    )
