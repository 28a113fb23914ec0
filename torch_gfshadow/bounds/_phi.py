"""Exponential integrals without overflow or cancellation; every bound is made of these.

The solution of R' = mR + s^k over a step h from 0 is k! h^{k+1} p_{k+1}(mh), with::

    p_1(z) = (e^z − 1)/z    p_2(z) = (e^z − 1 − z)/z²    p_3(z) = (e^z − 1 − z − z²/2)/z³

The limits z → 0 and z < 0 are exact to rounding. Where a value leaves the range of a float it is
``inf``; its logarithm does not.
"""

from __future__ import annotations

import math

_SERIES_BELOW = 2.0  # beyond it the formulas lose less than a digit; within, 30 terms are exact
_TERMS = 30


def p1(z: float) -> float:
    """Return (e^z − 1)/z, 1 at 0: the mean of e^s over 0 ≤ s ≤ z."""
    return _p(1, z)


def p2(z: float) -> float:
    """Return (e^z − 1 − z)/z², 1/2 at 0."""
    return _p(2, z)


def p3(z: float) -> float:
    """Return (e^z − 1 − z − z²/2)/z³, 1/6 at 0."""
    return _p(3, z)


def log_integral(m: float, duration: float) -> float:
    """Return log ∫_0^h e^{ms} ds for h ≥ 0 without forming e^{mh}; −∞ for h = 0."""
    if duration == 0.0:
        return -math.inf
    z = m * duration
    if abs(z) < 1e-8:  # the next term, z²/24, is below rounding
        return math.log(duration) + z / 2
    if z > 0.0:
        return z + log_one_minus_exp(-z) - math.log(m)
    return log_one_minus_exp(z) - math.log(-m)


def log_add(a: float, b: float) -> float:
    """Return log(e^a + e^b)."""
    high, low = max(a, b), min(a, b)
    if math.isinf(high):
        return high
    return high + math.log1p(math.exp(low - high))


def log_one_minus_exp(x: float) -> float:
    """Return log(1 − e^x) for x ≤ 0; −∞ at 0."""
    if x == 0.0:
        return -math.inf
    # log(−expm1) keeps the digits near 0, log1p those of a small e^x
    return math.log(-math.expm1(x)) if x > -math.log(2.0) else math.log1p(-math.exp(x))


def log_ratio(a: float, b: float) -> float:
    """Return log(a/b) for a ≥ 0, b > 0, to rounding also where a is nearly b; −∞ for a = 0."""
    if 0.5 * b <= a <= 2.0 * b:  # the difference is exact there
        return math.log1p((a - b) / b)
    return log(a) - math.log(b)


def exp(log_value: float) -> float:
    """Return e^log_value, ``inf`` instead of an overflow."""
    try:
        return math.exp(log_value)
    except OverflowError:
        return math.inf


def log(value: float) -> float:
    """Return the natural logarithm of ``value`` ≥ 0, −∞ for 0."""
    return math.log(value) if value > 0.0 else -math.inf


def _p(k: int, z: float) -> float:
    if abs(z) < _SERIES_BELOW:
        total = 0.0
        for j in reversed(range(_TERMS)):  # Σ z^j/(j+k)!, smallest first
            total += z**j / math.factorial(j + k)
        return total
    if z == math.inf:
        return math.inf
    if z == -math.inf:
        return 0.0
    if z > 0.0:
        # e^z/z^k may exist where e^z does not, and below z = 700 the polynomial still counts
        polynomial = math.fsum(z**j / math.factorial(j) for j in range(k))
        if z < 700.0:
            return (math.exp(z) - polynomial) / z**k
        return exp(z - k * math.log(z))
    polynomial = math.fsum([math.expm1(z), *(-(z**j) / math.factorial(j) for j in range(1, k))])
    return polynomial / z**k
