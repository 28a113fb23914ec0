"""Theorem 4 from weights that are only nearly balanced (derived; the paper's Remark 1, explicit).

Exactly balanced weights cannot be represented in floating point. Let θ_s be exactly balanced,
with r_s = ‖W_{n:1,s}‖_F and alignment ν_s, and start gradient descent at θ_0. If::

    ‖θ_0 − θ_s‖ ≤ ρ_max = min{1, ε̃} r_s⁴ / (60 e n⁶ P^{2n} L (e² q)^{5(n−1)/2})

then Theorem 4 holds unchanged, with the step size and the number of steps of (r_s, ν_s): the
numerator of Equation 7 keeps half of ε, and the derivation has more than a factor 2 to spare.
For one output θ_s is found by alternating projections, and the distance is exact. ρ_max is tiny:
``tight_step`` admits starts that are a billion times farther away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch_gfshadow.bounds._balanced import Setting, setting_of
from torch_gfshadow.bounds._phi import exp, log
from torch_gfshadow.bounds._scalars import distance, held, positive
from torch_gfshadow.bounds.base import Evaluation
from torch_gfshadow.bounds.theorem4 import log_step_size, n_steps
from torch_gfshadow.errors import AssumptionError, must


def approximate_balance(
    n: int | None = None,
    r_s: float | None = None,
    nu_s: float | None = None,
    eps_tilde: float = 0.1,
    rho: float = 0.0,
    *,
    Ws: Sequence[Any] | None = None,  # noqa: N803 - the keys of the shared format
    X: Any = None,  # noqa: N803
    Y: Any = None,  # noqa: N803
    loss: str = "square",
) -> Evaluation:
    """Return Theorem 4's step size and number of steps from a nearly balanced start.

    Args:
        n: Number of weight matrices, at least 2.
        r_s: ‖W_{n:1}‖_F of the balanced weights, in (0, 0.2].
        nu_s: Cosine between their W_{n:1} and Λ_yx, in (−1, 1].
        eps_tilde: ε̃ > 0, loss above the minimum to be reached.
        rho: ‖θ_0 − θ_s‖, in θ.
        Ws: Instead of the numbers, the weights W_1, …, W_n: θ_s is found, and ρ is exact …
        X: … with the whitened inputs, one row each …
        Y: … and the labels, scaled so that ‖Λ_yx‖_F = 1: then every hypothesis is checked.
        loss: What the labels are fitted by; must be the square loss.

    Returns:
        ``rho`` and ``rho_max`` (with ``log_rho_max``), ``eta``, ``log_eta``, ``k``.

    Raises:
        AssumptionError: If ρ > ρ_max, or another hypothesis fails; the message has the number.
    """
    if Ws is not None:
        setting, gap = setting_of(Ws, X, Y, loss, exact=False)
    else:
        setting, gap = Setting.of(n, r_s, nu_s), distance("rho", rho)
    accuracy = positive("eps_tilde", eps_tilde, "It is the loss above the minimum to be reached.")
    log_rho_max = log_largest(setting, accuracy)
    if log(gap) > log_rho_max:
        condition = f"at most rho_max = exp({log_rho_max:.6g}) = {exp(log_rho_max):.3g}"
        fix = "Start nearer to balanced weights, in float64, or use tight_step."
        raise AssumptionError(must("rho = ‖θ_0 − θ_s‖", condition, f"{gap:.6g}", fix))
    log_eta = log_step_size(setting, accuracy)
    value = {
        "rho": gap,
        "rho_max": exp(log_rho_max),
        "log_rho_max": log_rho_max,
        "eta": exp(log_eta),
        "log_eta": log_eta,
        "k": f"{n_steps(setting, accuracy, log_eta):f}",
    }
    near = held("ρ ≤ ρ_max", f"ρ = {gap:.3g}, ρ_max = {exp(log_rho_max):.3g}")
    return Evaluation(value, (*setting.assumptions, near))


def log_largest(setting: Setting, accuracy: float) -> float:
    """Return log ρ_max."""
    n = setting.n
    return (
        min(0.0, math.log(accuracy))
        + 4 * math.log(setting.r0)
        - math.log(60.0)
        - 1.0
        - 6 * math.log(n)
        - 2 * n * setting.log_p
        - math.log(setting.log_l(accuracy))
        - 2.5 * (n - 1) * (2.0 + setting.log_q)
    )
