"""Theorem 4 with the exact flow in place of Proposition 3: a step size one can run (derived).

Gradient descent from (nearly) balanced weights ends within loss min f + ε̃ if it stays within ε
of the flow until the flow's own loss is min f + ε̃/2, where ε is so small that the two losses
differ by at most ε̃/2. Theorem 3 gives the step size, with m, β and γ from the exact flow: with
a = r^{1/n}, on the ball of radius ε around balanced weights::

    ‖W − Λ_yx‖ ≤ g̃ = G + (a + ε/√n)^n − a^n,            G = ‖W − Λ_yx‖ on the flow
    m = ((n−2)h + √(((n−2)h)² + 4(n−1)g²)) / 2,          g = g̃ (a + ε/√(n−2))^{n−2}
    h = min{g, B|r − ν| + g − BG},                       B = a^{n−2}
    β = n (a + ε/√(n−1))^{2n−2} + m,   γ = √n g̃ (a + ε/√(n−1))^{n−1}

each taken at its largest over short cells of time. Against Equation 19 the step size is larger by
14 to 77 orders of magnitude.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from torch_gfshadow.bounds._balanced import Setting, setting_of
from torch_gfshadow.bounds._exact_flow import Array, Path, follow, time_of
from torch_gfshadow.bounds._scalars import distance, positive
from torch_gfshadow.bounds.base import Assumption, Evaluation
from torch_gfshadow.bounds.theorem3 import theorem3
from torch_gfshadow.errors import AssumptionError, must

_HALVINGS, _CELLS = 12, 250


def tight_step(
    n: int | None = None,
    r0: float | None = None,
    nu: float | None = None,
    eps_tilde: float = 0.1,
    init_dist: float = 0.0,
    *,
    Ws: Sequence[Any] | None = None,  # noqa: N803 - the keys of the shared format
    X: Any = None,  # noqa: N803
    Y: Any = None,  # noqa: N803
    loss: str = "square",
) -> Evaluation:
    """Return a step size and a number of steps with which gradient descent provably converges.

    Args:
        n: Number of weight matrices, at least 2.
        r0: ‖W_{n:1}‖_F at the balanced start of the flow, in (0, 0.2].
        nu: Cosine between W_{n:1} there and Λ_yx, in (−1, 1].
        eps_tilde: ε̃ > 0, loss above the minimum to be reached.
        init_dist: ρ, distance of gradient descent's start from the balanced one, in θ.
        Ws: Instead of the numbers, the weights W_1, …, W_n, balanced or nearly so …
        X: … with the whitened inputs, one row each …
        Y: … and the labels, scaled so that ‖Λ_yx‖_F = 1: then every hypothesis is checked.
        loss: What the labels are fitted by; must be the square loss.

    Returns:
        ``feasible``; ``eta``, a strict upper limit, with ``log_eta``; ``k``, the number of steps
        at η, in digits from 10⁴⁰⁰⁰ on; ``eps``, the distance kept; ``horizon``, the time at which
        the loss is reached.

    Raises:
        AssumptionError: If a hypothesis fails; the message has the number.
    """
    accuracy = positive("eps_tilde", eps_tilde, "It is the loss above the minimum to be reached.")
    if Ws is not None:
        setting, start = setting_of(Ws, X, Y, loss, exact=False)
    else:
        setting, start = Setting.of(n, r0, nu), distance("init_dist", init_dist)
    # an accuracy beyond the loss at the start is reached at once
    accuracy = min(accuracy, 2.0 * _gap_at_start(setting))
    wanted = min(0.5 * accuracy, 0.99 * _gap_at_start(setting))
    path = follow(setting, gap=wanted)
    horizon = time_of(path, wanted)
    stop = int(np.argmax(path.times > horizon))  # one cell for the last step to end in
    path = path.taken(slice(0, stop + 2)).thinned(_CELLS)
    largest = (1.0 + (math.sqrt(2.0 * accuracy) - math.sqrt(2.0 * wanted))) ** (
        1.0 / setting.n
    ) - 1.0
    largest *= math.sqrt(setting.n)
    found, radius = None, math.nan
    for halving in range(_HALVINGS):  # a larger ball is not always better: it has larger constants
        eps = largest / 2.0**halving
        if eps <= start and found is not None:
            break
        limit = limit_on_balls(path, eps, start)
        if found is None or limit.value["eta"] > found.value["eta"]:
            found, radius = limit, eps
        elif found.value["feasible"]:
            break
    assert found is not None
    feasible = bool(found.value["feasible"])
    last = float(path.times[-1] - horizon)
    if not last > 0.0:
        fix = "Near 0, and near ν = −1, the flow stands still for longer than float64 can count."
        got = f"{setting.r0:g} with ν = {setting.nu:g}"
        raise AssumptionError(must("r0 = ‖W_{n:1}‖_F at the start", "larger", got, fix))
    log_eta = min(found.value["log_eta"], math.log(last)) if feasible else None
    value = {
        "feasible": feasible,
        "eta": math.exp(log_eta) if log_eta is not None else 0.0,
        "log_eta": log_eta,
        "k": None if log_eta is None else _fits(horizon, log_eta),
        "eps": radius,
        "horizon": horizon,
    }
    exact = Assumption("time, size and alignment of the flow", "held: quadrature to rounding", True)
    return Evaluation(value, (*setting.assumptions, exact), found.status)


def limit_on_balls(path: Path, eps: float, start: float) -> Evaluation:
    """Return Theorem 3 on the ε-ball around the path."""
    m, beta, gamma = ball_constants(path, eps)
    return theorem3(path.times.tolist(), m.tolist(), beta, gamma, eps, start, half_step=True)


def ball_constants(path: Path, eps: float) -> tuple[Array, float, float]:
    """Return m per cell of the path, β and γ on the ε-balls around it, certified."""
    n, root = path.n, math.sqrt
    a = _largest(path.r) ** (1.0 / n)
    force = np.sqrt(2.0 * path.gap)
    ball = force[:-1] + (a + eps / root(n)) ** n - a**n  # the force decreases along the flow
    g = ball * (a + eps / root(max(1, n - 2))) ** (n - 2)
    # where r turns within a cell its smallest value is below both ends: 0 is always below
    smallest = np.minimum(path.r[:-1], path.r[1:]) ** ((n - 2) / n)
    turning = (path.r < path.nu)[1:] & ~(path.r < path.nu)[:-1]
    least = np.where(turning, 0.0, smallest) if n > 2 else np.ones_like(g)
    along = a ** (n - 2) * _largest(np.abs(path.r - path.nu))
    h = np.minimum(g, along + g - least * force[1:])
    m = 0.5 * ((n - 2) * h + np.sqrt(((n - 2) * h) ** 2 + 4 * (n - 1) * g**2))
    wide = a + eps / root(n - 1)
    beta = float((n * wide ** (2 * n - 2) + m).max())
    gamma = float((root(n) * ball * wide ** (n - 1)).max())
    return m, beta, gamma


def _fits(horizon: float, log_eta: float) -> int | str:
    """Return how many steps of this size it takes; digits where Python writes no integer."""
    if log_eta > -700.0:
        return math.ceil(horizon / math.exp(log_eta))
    with decimal.localcontext() as context:
        context.prec, context.rounding = 60, decimal.ROUND_CEILING
        count = (Decimal(horizon) * Decimal(-log_eta).exp()).to_integral_value()
        return int(count) if count.adjusted() < 4000 else f"{count:f}"


def _largest(values: Array) -> Array:
    """Return the larger of the two ends of every cell."""
    return np.maximum(values[:-1], values[1:])


def _gap_at_start(setting: Setting) -> float:
    return 0.5 * (setting.r0**2 - 2.0 * setting.r0 * setting.nu + 1.0)
