"""A lower bound on λ_min from the Lanczos polynomial of a random start."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def probabilistic_lower_bound(
    values: Tensor, off_diagonals: Sequence[float], dim: int, failure_probability: float
) -> float:
    """Bound the smallest eigenvalue from below after k steps of Lanczos from a random vector.

    The Lanczos polynomial p_k(t) = Π(t − θ_i) / Πβ_j maps the start v to the unit vector
    v_{k+1} = p_k(H)v, so |γ·p_k(λ_min)| ≤ 1 with γ the component of v along the eigenvector.
    For v uniform on the sphere in R^d, P(|γ| < δ) ≤ 2cδ, c = Γ(d/2) / (√π Γ((d−1)/2)). As |p_k|
    grows monotonically below its roots, λ_min ≥ t where |p_k(t)| = 1/δ.
    """
    lowest = float(values[0])
    if min(off_diagonals) <= 0.0:
        return lowest
    d = max(dim, 3)  # for d = 2 the density is not largest at 0; that of d = 3 bounds it
    log_c = math.lgamma(d / 2) - math.lgamma((d - 1) / 2) - 0.5 * math.log(math.pi)
    log_delta = math.log(failure_probability) - math.log(2) - log_c
    target = sum(math.log(beta) for beta in off_diagonals) - log_delta
    gaps = [value - lowest for value in values.tolist()]
    # Every factor exceeds the distance x = θ_1 − t, so x ≤ exp(target / k).
    low, high = 0.0, math.exp(target / len(gaps))
    for _ in range(100):
        middle = 0.5 * (low + high)
        if middle > 0.0 and sum(math.log(gap + middle) for gap in gaps) < target:
            low = middle
        else:
            high = middle
    return lowest - high
