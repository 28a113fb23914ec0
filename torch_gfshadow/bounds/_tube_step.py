"""One step of a tube: the solution of R' = mR + c0 + c1 s + c2 s², without overflow."""

from __future__ import annotations

import math

from torch_gfshadow.bounds._phi import exp, log, log_add, p1, p2, p3


def tube_step(R: float, h: float, m: float, c0: float, c1: float = 0.0, c2: float = 0.0) -> float:  # noqa: N803
    """Return R(h) for R' = mR + c0 + c1 s + c2 s², R(0) = R.

    Args:
        R: Radius at the beginning, in θ, not negative.
        h: Length of the step, in t, not negative.
        m: Upper limit of −λ_min on the ball, in 1/t.
        c0: Constant part of the defect, in θ/t, not negative.
        c1: Its slope, in θ/t².
        c2: Its quadratic part, in θ/t³.

    Returns:
        The radius at the end, ``inf`` where it exceeds the range of a float.

    References:
        Derived; exact by the exponential integrals p_k.

    Example:
        >>> round(tube_step(R=0.5, h=0.05, m=0.0, c0=0.01, c1=0.2, c2=0.4), 16)
        0.5007666666666667
    """
    z = m * h
    if z > 700.0:
        return exp(_log_step(R, h, z, c0, c1, c2))
    total = math.exp(z) * R if R else 0.0
    for factor, integral, power in ((c0, p1, 1), (c1, p2, 2), (2.0 * c2, p3, 3)):
        if factor:
            total += factor * h**power * integral(z)
    return total


def _log_step(radius: float, h: float, z: float, c0: float, c1: float, c2: float) -> float:
    """Return the logarithm of the same for z = mh so large that only e^z counts in p_k."""
    total = log(radius) + z
    for k, factor in ((1, c0), (2, c1), (3, 2.0 * c2)):
        total = log_add(total, log(factor) + k * math.log(h / z) + z)
    return total
