"""Proposition 3 of Elkabetz & Cohen (Equations 17 and 18): the flow from a balanced start.

In the setting of ``_balanced`` the flow reaches loss min f + ε̄ by the time::

    t̄ = (2n P^n / r_0) ln(15 n q / (r_0 min{1, 2ε̄}))                                   (17)

and the curvature m on the ε-balls around it, 0 < ε ≤ 1/(2n), satisfies::

    ∫_0^t m ≤ 15 n³ P^n t ε/r_0 + 2 ln n + (5/2)(n−1)(2 + ln q) − 2 ln r_0               (18)

with q = max{1, (1−ν)/(1+ν)} and P = max{1, 1.5 (1−ν)/(1+ν)}. On those balls β = 16n and
γ = 6√n. True times and integrals are far smaller: see ``exact_dynamics``.
"""

from __future__ import annotations

import math

from torch_gfshadow.bounds._balanced import Setting
from torch_gfshadow.bounds._phi import exp, log, log_add
from torch_gfshadow.bounds._scalars import ROUNDING, held, not_negative, number, positive
from torch_gfshadow.bounds.base import Assumption, Evaluation


def proposition3(n: int, r0: float, nu: float, eps_bar: float, eps: float) -> Evaluation:
    """Bound the time to reach ε̄ and the integral of the curvature up to then.

    Args:
        n: Number of weight matrices, at least 2.
        r0: ‖W_{n:1}‖_F at the start, in (0, 0.2].
        nu: Cosine between W_{n:1} at the start and Λ_yx, in (−1, 1].
        eps_bar: ε̄ > 0, loss above the minimum to be reached.
        eps: ε in (0, 1/(2n)], the radius of the balls around the flow.

    Returns:
        ``t_bar`` of (17), ``rhs`` of (18) at t̄, and the constants ``beta`` and ``gamma``.

    Raises:
        AssumptionError: If a number is out of range.

    References:
        Elkabetz & Cohen 2021, Proposition 3.
    """
    setting = Setting.of(n, r0, nu)
    radius, checked = ball(setting.n, eps)
    log_time = _log_time(setting, eps_bar)
    value = {
        **_with_log("t_bar", log_time),
        **_integral(setting, log_time, radius),
        "beta": 16.0 * setting.n,
        "gamma": 6.0 * math.sqrt(setting.n),
    }
    return Evaluation(value, (*setting.assumptions, checked))


def equation17(n: int, r0: float, nu: float, eps_bar: float) -> Evaluation:
    """Return ``t_bar``, an upper limit of the time to loss min f + ε̄; ``log_t_bar`` if it is inf.

    Arguments and errors are those of :func:`proposition3`.
    """
    setting = Setting.of(n, r0, nu)
    return Evaluation(_with_log("t_bar", _log_time(setting, eps_bar)), setting.assumptions)


def equation18(n: int, r0: float, nu: float, t: float, eps: float) -> Evaluation:
    """Return ``rhs``, an upper limit of the integral of m up to time t; ``log_rhs`` if it is inf.

    Arguments and errors are those of :func:`proposition3`; ``t`` is not negative.
    """
    setting = Setting.of(n, r0, nu)
    time = not_negative("t", t, "Time starts at 0.")
    radius, checked = ball(setting.n, eps)
    return Evaluation(_integral(setting, log(time), radius), (*setting.assumptions, checked))


def ball(n: int, eps: float) -> tuple[float, Assumption]:
    """Return a radius in (0, 1/(2n)] and how it was checked.

    Raises:
        AssumptionError: If it is out of range.
    """
    largest = 1.0 / (2 * n)
    radius = number(
        "eps",
        eps,
        f"in (0, 1/(2n)] = (0, {largest:g}]",
        lambda x: 0.0 < x <= largest * (1.0 + ROUNDING),
        "On larger balls the constants of the proposition do not hold.",
    )
    return radius, held("ε ≤ 1/(2n)", f"ε = {radius:g}, 1/(2n) = {largest:g}")


def _log_time(setting: Setting, eps_bar: float) -> float:
    target = positive("eps_bar", eps_bar, "It is the loss above the minimum to be reached.")
    log_time = math.log(2 * setting.n) + setting.n * setting.log_p - math.log(setting.r0)
    return log_time + math.log(setting.log_l(2.0 * target))


def _integral(setting: Setting, log_time: float, radius: float) -> dict[str, float]:
    n, log_start = setting.n, math.log(setting.r0)
    log_first = math.log(15) + 3 * math.log(n) + n * setting.log_p
    log_first += log_time + math.log(radius) - log_start
    rest = 2 * math.log(n) + 2.5 * (n - 1) * (2 + setting.log_q) - 2 * log_start
    return _with_log("rhs", log_add(log_first, math.log(rest)), exp(log_first) + rest)


def _with_log(name: str, log_value: float, value: float | None = None) -> dict[str, float]:
    """Return the value under its name, and its logarithm beside it where it overflowed."""
    value = exp(log_value) if value is None else value
    return {name: value} if math.isfinite(value) else {name: value, f"log_{name}": log_value}
