"""Second-order Runge–Kutta–Chebyshev (RKC2): stages bought for stability, s ∝ √(hλ).

Source: Sommeijer, Shampine & Verwer, "RKC: an explicit solver for parabolic PDEs", J. Comput.
Appl. Math. 88 (1998) 315–326; the Jacobian of a gradient flow is symmetric, which is what RKC
is made for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

DAMPING = 2.0 / 13.0
"""The authors' damping: longest steps, but stiff modes shrink by 5 % a step only."""
STRONG = 5.0
"""Damping that shrinks stiff modes below a half per step, for 25 % more stages."""


def stages_for(h_lambda: float, damping: float = DAMPING) -> int:
    """Return the fewest stages s ≥ 2 whose stability interval covers ``h_lambda`` = h·λ_max.

    The interval is about β(s) = ⅔ (s² − 1)(1 − 2ε/15) for the authors' small damping ε = 2/13,
    and 0.4·s² for ``STRONG``.
    """
    per_square = 1.54 if damping <= DAMPING else 2.5
    return max(2, math.ceil(math.sqrt(1.0 + per_square * max(h_lambda, 0.0))))


@functools.lru_cache(maxsize=256)
def coefficients(
    s: int, damping: float = DAMPING
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return (μ, ν, μ̃, γ̃), each indexed 0…s, of the s-stage method (their eq. 2.1–2.5)."""
    w0 = 1.0 + damping / s**2
    value, slope, curve = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for j in range(2, s + 1):
        value.append(2 * w0 * value[j - 1] - value[j - 2])
        slope.append(2 * value[j - 1] + 2 * w0 * slope[j - 1] - slope[j - 2])
        curve.append(4 * slope[j - 1] + 2 * w0 * curve[j - 1] - curve[j - 2])
    w1 = slope[s] / curve[s]
    b = [0.0, 0.0] + [curve[j] / slope[j] ** 2 for j in range(2, s + 1)]
    b[0] = b[1] = b[2]
    mu, nu, mu_t, gamma_t = ([0.0] * (s + 1) for _ in range(4))
    mu_t[1] = b[1] * w1
    for j in range(2, s + 1):
        mu[j] = 2 * b[j] * w0 / b[j - 1]
        nu[j] = -b[j] / b[j - 2]
        mu_t[j] = 2 * b[j] * w1 / b[j - 1]
        gamma_t[j] = -(1.0 - b[j - 1] * value[j - 1]) * mu_t[j]
    return mu, nu, mu_t, gamma_t


@functools.lru_cache(maxsize=256)
def cubic_term(s: int, damping: float = DAMPING) -> float:
    """Return c in R(z) = 1 + z + z²/2 + c·z³ + …, the stability polynomial of ``s`` stages.

    c is 0 for two stages and goes to about 1/10; the exponential has 1/6.
    """
    mu, nu, mu_t, gamma_t = coefficients(s, damping)
    before, current = [1.0, 0.0, 0.0, 0.0], [1.0, mu_t[1], 0.0, 0.0]
    for j in range(2, s + 1):
        following = [
            mu[j] * current[k] + nu[j] * before[k] + (mu_t[j] * current[k - 1] if k else 0.0)
            for k in range(4)
        ]
        following[0] += 1.0 - mu[j] - nu[j]
        following[1] += gamma_t[j]
        before, current = current, following
    return current[3]


def rkc_increment(
    field: Callable[[Tensor], Tensor],
    state: Tensor,
    slope: Tensor,
    h: float,
    s: int,
    damping: float = DAMPING,
) -> Tensor:
    """Return y_{n+1} − y_n of one RKC2 step of size ``h``; costs ``s`` − 1 evaluations.

    Stages are kept as distances from ``state``, two at a time: next to a long step's stages the
    rounding of the state does not count.

    Args:
        field: Right-hand side F.
        state: y_n, shape ``[d]``.
        slope: F(y_n), known.
        h: Step size.
        s: Stages, from :func:`stages_for`.
        damping: ε of the Chebyshev polynomials.

    Returns:
        The increment, second order for any s; bounded for real hλ ∈ [−β(s), 0].
    """

    def add(current: Tensor, out: Tensor, weight: float) -> None:
        out.add_(field(state + current), alpha=weight)

    return rkc_increment_by(add, slope, h, s, damping)[0]


def rkc_increment_by(
    add: Callable[[Tensor, Tensor, float], None],
    slope: Tensor,
    h: float,
    s: int,
    damping: float = DAMPING,
) -> tuple[Tensor, Tensor]:
    """Return what :func:`rkc_increment` does, and a vector that may be overwritten.

    ``add(z, out, w)`` adds w·F(y_n + z) to ``out``, so that no stage need be stored. Beside
    ``slope`` there are two vectors, and what ``add`` needs.
    """
    mu, nu, mu_t, gamma_t = coefficients(s, damping)
    before, current = torch.zeros_like(slope), slope * (mu_t[1] * h)
    for j in range(2, s + 1):
        before.mul_(nu[j]).add_(current, alpha=mu[j])
        add(current, before, mu_t[j] * h)
        before.add_(slope, alpha=gamma_t[j] * h)
        before, current = current, before
    return current, before


@functools.lru_cache(maxsize=256)
def first_order(s: int, damping: float) -> tuple[list[float], list[float], list[float]]:
    """Return (μ, ν, μ̃), each indexed 0…s, of the s-stage method of order one.

    Its stability polynomial T_s(w₀ + w₁z)/T_s(w₀) needs nothing of the first slope, a vector less.

    Source: van der Houwen & Sommeijer, Z. Angew. Math. Mech. 60 (1980).
    """
    w0 = 1.0 + damping / s**2
    value, slope = [1.0, w0], [0.0, 1.0]
    for j in range(2, s + 1):
        value.append(2 * w0 * value[j - 1] - value[j - 2])
        slope.append(2 * value[j - 1] + 2 * w0 * slope[j - 1] - slope[j - 2])
    w1 = value[s] / slope[s]
    mu, nu, mu_t = ([0.0] * (s + 1) for _ in range(3))
    mu_t[1] = w1 / w0
    for j in range(2, s + 1):
        mu[j] = 2 * w0 * value[j - 1] / value[j]
        nu[j] = -value[j - 2] / value[j]
        mu_t[j] = 2 * w1 * value[j - 1] / value[j]
    return mu, nu, mu_t


def rkc_step(
    field: Callable[[Tensor], Tensor],
    state: Tensor,
    slope: Tensor,
    h: float,
    s: int,
    damping: float = DAMPING,
) -> Tensor:
    """Advance ``state`` by one RKC2 step of size ``h``; costs ``s`` − 1 evaluations.

    Args:
        field: Right-hand side F.
        state: y_n, shape ``[d]``.
        slope: F(y_n), known.
        h: Step size.
        s: Stages, from :func:`stages_for`.
        damping: ε of the Chebyshev polynomials.

    Returns:
        y_{n+1}, second order for any s; bounded for real hλ ∈ [−β(s), 0].
    """
    return state + rkc_increment(field, state, slope, h, s, damping)
