"""A function on which gradient descent leaves the flow as fast as the theory allows (derived).

A curved ridge, smooth on the whole plane, with w = y − a sin x::

    f(x, y) = −(1 + a²/2) x − (a²/4) sin 2x − a cos x sin w − m (1 − cos w)

The flow from the origin is exactly θ(t) = (t, a sin t). Gradient descent, thrown off the ridge by
its curvature, leaves it like η e^{m(1+a²/2)t}: up to time T it stays within ε only for η of about
(2ε(1+m²)/a) e^{−m(1+a²/2)T} or less, so that the exponential in Equation 7 cannot be avoided.
f is unbounded below: Corollary 1 applies with a limit of the gradient on a finite window.
"""

from __future__ import annotations

import math

from torch_gfshadow.bounds._phi import exp
from torch_gfshadow.bounds._scalars import finite, held, not_negative, positive
from torch_gfshadow.bounds.base import Assumption, Evaluation


def worst_case(a: float, m: float, x: float, y: float) -> Evaluation:
    """Evaluate the ridge at a point.

    Args:
        a: Amplitude of the ridge, not negative; 0 makes it straight, and GD exact.
        m: Curvature across it, positive.
        x: First coordinate.
        y: Second coordinate.

    Returns:
        ``f``, ``grad`` (two numbers) and ``lambda_min`` of the Hessian.

    Raises:
        AssumptionError: If a number is out of range.
    """
    amplitude, rate = _shape(a, m)
    place = finite("x", x), finite("y", y)
    value = {
        "f": ridge(amplitude, rate, *place),
        "grad": list(gradient(amplitude, rate, *place)),
        "lambda_min": _smallest(hessian(amplitude, rate, *place)),
    }
    return Evaluation(value, (held("a ≥ 0, m > 0", f"a = {amplitude:g}, m = {rate:g}"),))


def necessary_step_size(a: float, m: float, eps: float, horizon: float) -> Evaluation:
    """Return about which step size GD may have at most to stay within ε of the flow up to T.

    Args:
        a: Amplitude of the ridge, positive.
        m: Curvature across it, positive.
        eps: ε, the distance from the flow.
        horizon: T.

    Returns:
        ``eta`` and ``log_eta``; an estimate, exact up to a factor that does not depend on T.

    Raises:
        AssumptionError: If a number is out of range.
    """
    amplitude = positive("a", a, "A straight ridge throws nothing off.")
    rate = positive("m", m, "Without curvature across the ridge nothing grows.")
    radius = positive("eps", eps, "It is the distance from the flow to be kept.")
    end = positive("horizon", horizon, "It is the time up to which GD follows the flow.")
    log_eta = math.log(2 * radius * (1 + rate**2) / amplitude) - rate * (1 + amplitude**2 / 2) * end
    estimate = Assumption("ε small against the width of the ridge", "not checked", certain=False)
    return Evaluation({"eta": exp(log_eta), "log_eta": log_eta}, (estimate,))


def ridge(a: float, m: float, x: float, y: float) -> float:
    """Return f(x, y)."""
    w = y - a * math.sin(x)
    slope = -(1 + a * a / 2) * x - a * a / 4 * math.sin(2 * x)
    return slope - a * math.cos(x) * math.sin(w) - m * (1 - math.cos(w))


def gradient(a: float, m: float, x: float, y: float) -> tuple[float, float]:
    """Return ∇f(x, y); −(1, a cos x) on the ridge."""
    w = y - a * math.sin(x)
    c, s, cw, sw = math.cos(x), math.sin(x), math.cos(w), math.sin(w)
    along = -1.0 - a * a * c * c + a * s * sw + a * a * c * c * cw + m * a * c * sw
    return along, -a * c * cw - m * sw


def hessian(a: float, m: float, x: float, y: float) -> tuple[float, float, float]:
    """Return f_xx, f_xy and f_yy."""
    w = y - a * math.sin(x)
    c, s, cw, sw = math.cos(x), math.sin(x), math.cos(w), math.sin(w)
    f_yy = a * c * sw - m * cw
    f_xy = a * s * cw - a * a * c * c * sw + m * a * c * cw
    f_xx = 2 * a * a * c * s + a * c * sw - 3 * a * a * s * c * cw + a**3 * c**3 * sw
    f_xx += -m * a * a * c * c * cw - m * a * s * sw
    return f_xx, f_xy, f_yy


def _smallest(entries: tuple[float, float, float]) -> float:
    """Return the smaller eigenvalue of a symmetric 2 × 2 matrix, by its stable formula."""
    xx, xy, yy = entries
    centre, half = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
    if centre <= 0.0:
        return centre - half
    # the product of both is the determinant: no cancellation
    return (xx * yy - xy * xy) / (centre + half)


def _shape(a: float, m: float) -> tuple[float, float]:
    return (
        not_negative("a", a, "It is the amplitude of the ridge."),
        positive("m", m, "It is the curvature across the ridge."),
    )
