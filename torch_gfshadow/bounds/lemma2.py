"""Lemma 2 of Elkabetz & Cohen, Eq. 13, and its tightenings: λ_min of a deep linear network.

With G = ∇φ(W), w_j = ‖W_j‖ and φ convex, from loose to tight::

    eq13      −(n−1) √min(d_0, d_n) ‖G‖_F max_{|J|=n−2} Π_J w_j
    spectral  −(n−1) ‖G‖ max_{|J|=n−2} Π_J w_j
    C_norms   −λ_max(C),  C_jk = ‖G‖ Π_{i≠j,k} w_i
    C_blocks  −λ_max(C),  C_jk = ‖W_{j−1:1} Gᵀ W_{n:k+1}‖ ‖W_{k−1:j+1}‖   (j < k)

The last uses that block (k, j) of the part of the Hessian that G carries is a Kronecker product up
to a permutation, so its norm is the product of two small norms; a block matrix is no larger than
the matrix of its blocks' norms. The middle two follow from |tr(Gᵀ A X B Y D)| ≤ ‖DGᵀA‖ ‖B‖ ‖X‖_F
‖Y‖_F: neither √min nor the Frobenius norm of G is needed. All but the first are derived here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import Any

import numpy as np

from torch_gfshadow.bounds._chain import Chain
from torch_gfshadow.bounds._deep_linear import Point, network, top_eigenvalue
from torch_gfshadow.bounds._inputs import Matrix, layers
from torch_gfshadow.bounds._losses import Loss
from torch_gfshadow.bounds._norms import UNIT, spectral_norm, times
from torch_gfshadow.bounds.base import Evaluation
from torch_gfshadow.bounds.lemma1 import CONVEX, SMOOTH, dense

_UP = 1 + 1e-12  # covers the handful of products and sums that no norm covers


@dataclass(frozen=True, slots=True)
class LambdaMinBounds:
    """Lower bounds of λ_min(∇²f(θ)), in f/θ²; −∞ where they leave the range of a float.

    Attributes:
        eq13: Eq. 13 as printed.
        spectral: With ‖G‖ in place of √min(d_0, d_n) ‖G‖_F.
        C_norms: By the matrix of products of norms.
        C_blocks: By the matrix of exact norms of the blocks; the tightest.
    """

    eq13: float
    spectral: float
    C_norms: float
    C_blocks: float


def lemma2(weights: Sequence[Any], loss: Loss) -> LambdaMinBounds:
    """Bound the smallest eigenvalue of the Hessian from below, without forming the Hessian.

    Certified: the norms are rounded up by what LAPACK and the products can have lost.

    Args:
        weights: W_1, …, W_n, n ≥ 2, W_j of shape d_j × d_{j−1}.
        loss: φ, convex.

    Returns:
        Four bounds, each at least as tight as the one before (up to rounding).

    Raises:
        AssumptionError: If the depth is below 2, shapes disagree, or a number is not finite.

    References:
        Elkabetz & Cohen 2021, Lemma 2 (Eq. 13); the other three are derived in this module.
    """
    return lambda_min_bounds(Point(Chain(layers("Ws", weights)), loss))


def lambda_min_bounds(point: Point) -> LambdaMinBounds:
    """Return the bounds of :func:`lemma2` for matrices that were checked before."""
    with np.errstate(over="ignore", invalid="ignore"):
        eq13, spectral = by_norms(point)
        c_norms, c_blocks = norms_matrix(point), blocks_matrix(point)
        found = [eq13, spectral, _top(c_norms), _top(c_blocks)]
    # each is a bound, so is the tightest so far: rounding up must not turn their order around
    return LambdaMinBounds(*(-float(value) for value in accumulate(found, min)))


def by_norms(point: Point) -> tuple[Any, Any]:
    """Return upper limits of −λ_min: Eq. 13, and with the spectral norm of G."""
    chain, n = point.chain, point.chain.depth
    narrow = np.sqrt(min(chain.widths[0], chain.widths[-1]))
    with np.errstate(divide="ignore", over="ignore"):
        logs = np.sort(np.log(np.stack([np.asarray(w) for w in chain.norms])), 0)
        largest = (n - 1) * np.exp(logs[2:].sum(0)) * _UP
        spectral = times(point.outer_norm, largest)
        return times(narrow * point.outer_frobenius, largest), spectral


def norms_matrix(point: Point) -> Matrix:
    """Return C_jk = ‖G‖ Π_{i≠j,k} ‖W_i‖, zero on the diagonal."""
    n = point.chain.depth
    c = np.zeros((*point.chain.batch, n, n))
    with np.errstate(divide="ignore", over="ignore"):
        logs = np.log(np.stack([np.asarray(w) for w in point.chain.norms]))
        for j, k in combinations(range(n), 2):
            rest = np.delete(logs, (j, k), 0).sum(0)
            c[..., j, k] = c[..., k, j] = times(point.outer_norm, np.exp(rest)) * _UP
    return c


def blocks_matrix(point: Point) -> Matrix:
    """Return the norms of the blocks of N: exact up to rounding, rounded up."""
    chain, n = point.chain, point.chain.depth
    c = np.zeros((*chain.batch, n, n))
    for low, high in combinations(range(1, n + 1), 2):
        outer, _ = point.cross_factors(low, high)
        norm = spectral_norm(outer) + factor_error(point, low, high)
        size = norm * chain.norm(high - 1, low + 1) * _UP
        c[..., low - 1, high - 1] = c[..., high - 1, low - 1] = size
    return c


def factor_error(point: Point, low: int, high: int) -> Any:
    """Bound the rounding of W_{low−1:1} Gᵀ W_{n:high+1}."""
    chain, n = point.chain, point.chain.depth
    left, right = chain.norm(low - 1, 1), chain.norm(n, high + 1)
    size = point.outer_frobenius
    made = 4 * max(chain.widths) ** 1.5 * UNIT * left * right * size
    bent = chain.error(low - 1, 1) * right + left * chain.error(n, high + 1)
    return left * right * point.outer_error + bent * size + made


def smoothness(point: Point, c: Matrix | None = None) -> Any:
    """Return an upper limit of ‖∇²f(θ)‖: L_φ Σ_j ‖W_{n:j+1}‖²‖W_{j−1:1}‖² + λ_max(C).

    Certified like the bounds of :func:`lemma2`; derived here.
    """
    chain, n = point.chain, point.chain.depth
    first = sum((chain.norm(n, j + 1) * chain.norm(j - 1, 1)) ** 2 for j in range(1, n + 1))
    return (point.loss.smoothness * first + _top(blocks_matrix(point) if c is None else c)) * _UP


def evaluate(Ws: Any, X: Any, Y: Any, loss: str = "square") -> Evaluation:  # noqa: N803
    """Evaluate the bounds, and what they bound.

    Args:
        Ws: W_1, …, W_n.
        X: Inputs, S × d_0.
        Y: Targets, S × d_n.
        loss: "square", "cross_entropy" or "logistic"; what follows a colon is a comment.

    Returns:
        ``rhs_eq13``, ``rhs_spectral``, ``rhs_C_norms``, ``rhs_C_blocks``, lower bounds of
        ``lambda_min``; ``smoothness``, an upper limit of ‖∇²f‖; and ``lambda_min`` of the dense
        Hessian (``None`` above 4,000 parameters, and where it overflows).

    Raises:
        AssumptionError: If a shape, the depth or the loss does not fit.
    """
    point = Point(*network(Ws, X, Y, loss))
    found = lambda_min_bounds(point)
    with np.errstate(over="ignore", invalid="ignore"):
        limit = float(smoothness(point))
    hessian = dense(point)
    value = {
        "rhs_eq13": found.eq13,
        "rhs_spectral": found.spectral,
        "rhs_C_norms": found.C_norms,
        "rhs_C_blocks": found.C_blocks,
        "smoothness": limit,
        "lambda_min": None if hessian is None else float(np.linalg.eigvalsh(hessian)[0]),
    }
    return Evaluation(value, (SMOOTH, CONVEX))


def _top(c: Matrix) -> Any:
    """Return λ_max(C) rounded up; ∞ where an entry is."""
    finite = np.asarray(np.isfinite(c).all((-2, -1)))
    safe = np.where(finite[..., None, None], c, 0.0)
    # by the largest entry, so that no square overflows
    scale = np.maximum(safe.max((-2, -1)), np.finfo(float).tiny)
    top = top_eigenvalue(safe / scale[..., None, None]) * scale
    return np.where(finite, top * _UP, np.inf)
