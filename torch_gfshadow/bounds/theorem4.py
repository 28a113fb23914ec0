"""Theorem 4 of Elkabetz & Cohen (Equations 19 and 20): gradient descent converges, and how fast.

In the setting of ``_balanced``, GD reaches loss min f + ε̃ with every step size up to::

    η = r_0^5 min{1, ε̃} / (n^{17/2} e^{7n+6} q^{(11n−5)/2} L²),   L = ln(15 n q / (r_0 min{1, ε̃}))

within k = ⌈2n P^n L / (r_0 η) + 1⌉ steps. Both leave the range of a float for modest n: η comes
with its logarithm, k as an integer of any length. Evaluate this step size, but do not run it: in
float64 it does not change θ at all. ``exact_dynamics`` has one that is about 10²⁹ times larger.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from torch_gfshadow.bounds._balanced import Setting, setting_of
from torch_gfshadow.bounds._phi import exp
from torch_gfshadow.bounds._scalars import positive
from torch_gfshadow.bounds.base import Assumption, Evaluation

_DIGITS = 60


def theorem4(
    n: int | None = None,
    r0: float | None = None,
    nu: float | None = None,
    eps_tilde: float = 0.1,
    *,
    Ws: Sequence[Any] | None = None,  # noqa: N803 - the keys of the shared format
    X: Any = None,  # noqa: N803
    Y: Any = None,  # noqa: N803
    loss: str = "square",
) -> Evaluation:
    """Return the step size and the number of steps of Theorem 4.

    Args:
        n: Number of weight matrices, at least 2.
        r0: ‖W_{n:1}‖_F at the start, in (0, 0.2].
        nu: Cosine between W_{n:1} at the start and Λ_yx, in (−1, 1].
        eps_tilde: ε̃ > 0, loss above the minimum to be reached.
        Ws: Instead of the three numbers, the weights W_1, …, W_n …
        X: … with the whitened inputs, one row each …
        Y: … and the labels, scaled so that ‖Λ_yx‖_F = 1: then every hypothesis is checked.
        loss: What the labels are fitted by; must be the square loss.

    Returns:
        ``eta`` and ``log_eta`` of (19), ``k`` of (20) at that η, a decimal string.

    Raises:
        AssumptionError: If a hypothesis fails; the message has the number.

    References:
        Elkabetz & Cohen 2021, Theorem 4.
    """
    if Ws is not None:
        setting, _ = setting_of(Ws, X, Y, loss)
    else:
        setting = Setting.of(n, r0, nu)
    accuracy = _accuracy(eps_tilde)
    log_eta = log_step_size(setting, accuracy)
    steps = n_steps(setting, accuracy, log_eta)
    value = {"eta": exp(log_eta), "log_eta": log_eta, "k": f"{steps:f}"}
    return Evaluation(value, setting.assumptions)


def equation19(n: int, r0: float, nu: float, eps_tilde: float) -> Evaluation:
    """Return ``eta`` and ``log_eta``, the largest step size of Theorem 4.

    Arguments and errors are those of :func:`theorem4`.
    """
    setting = Setting.of(n, r0, nu)
    log_eta = log_step_size(setting, _accuracy(eps_tilde))
    return Evaluation({"eta": exp(log_eta), "log_eta": log_eta}, setting.assumptions)


def equation20(n: int, r0: float, nu: float, eps_tilde: float, eta: float) -> Evaluation:
    """Return ``k``, the number of steps of size ``eta`` after which the loss is reached.

    Arguments and errors are those of :func:`theorem4`. Whether ``eta`` satisfies (19) is in the
    status, not enforced: (20) counts how often ``eta`` fits into a time.
    """
    setting = Setting.of(n, r0, nu)
    accuracy = _accuracy(eps_tilde)
    log_eta = math.log(positive("eta", eta, "It is a step size."))
    limit = log_step_size(setting, accuracy)
    steps = n_steps(setting, accuracy, log_eta, Decimal(float(eta)))
    allowed, status = log_eta <= limit + 1e-12 * abs(limit), "ok"
    if not allowed:
        status = f"eta is larger than Equation 19 allows (log_eta = {limit:.6g}): k is no guarantee"
    how = f"log eta = {log_eta:.6g}, log of the limit = {limit:.6g}"
    small = Assumption(
        "eta at most that of Equation 19",
        f"{'held' if allowed else 'failed'}: {how}",
        certain=allowed,
        failed=not allowed,
    )
    return Evaluation({"k": f"{steps:f}"}, (*setting.assumptions, small), status)


def log_step_size(setting: Setting, accuracy: float) -> float:
    """Return log η of (19)."""
    n = setting.n
    return (
        5 * math.log(setting.r0)
        + min(0.0, math.log(accuracy))
        - 8.5 * math.log(n)
        - (7 * n + 6)
        - (11 * n - 5) / 2 * setting.log_q
        - 2 * math.log(setting.log_l(accuracy))
    )


def n_steps(
    setting: Setting, accuracy: float, log_eta: float, eta: Decimal | None = None
) -> Decimal:
    """Return k of (20), rounded up to 60 digits, for a step size given by its log or exactly."""
    with decimal.localcontext() as context:
        context.prec, context.rounding = _DIGITS, decimal.ROUND_CEILING
        context.Emax, context.Emin = decimal.MAX_EMAX, decimal.MIN_EMIN
        n, r0, nu = Decimal(setting.n), Decimal(setting.r0), Decimal(setting.nu)
        ratio = (1 - nu) / (1 + nu)
        q, p = max(Decimal(1), ratio), max(Decimal(1), ratio * 3 / 2)
        length = (15 * n * q / (r0 * min(Decimal(1), Decimal(accuracy)))).ln()
        step = Decimal(log_eta).exp() if eta is None else eta
        count = 2 * n * p**setting.n * length / (r0 * step)
        return (count + 1).to_integral_value(decimal.ROUND_CEILING)


def _accuracy(eps_tilde: Any) -> float:
    return positive("eps_tilde", eps_tilde, "It is the loss above the minimum to be reached.")
