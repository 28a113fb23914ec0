"""Constants of a deep linear network that hold on a whole ball around a point.

For ‖q − θ‖ ≤ ρ every layer moves by at most ρ, so with p_ij = ‖W_{i:j}‖ at the centre::

    ‖W_{i:j}(q)‖ ≤ U_ij,  U_ij = p_ij + Σ_{k=j}^{i} p_{i,k+1} ρ U_{k−1,j},  U_{j−1,j} = 1
    ‖W(q) − W(θ)‖_F ≤ U_n1 − p_n1,  so  ‖G(q)‖ ≤ g = ‖G‖ + L_φ (U_n1 − p_n1)

Everything else follows by putting U and g where the norms stood. All derived here; everything is
rounded up.
"""

from __future__ import annotations

import math
from functools import cached_property
from itertools import combinations

import numpy as np

from torch_gfshadow.bounds._chain import flat
from torch_gfshadow.bounds._deep_linear import Point, top_eigenvalue
from torch_gfshadow.bounds._inputs import Matrix
from torch_gfshadow.bounds._norms import spectral_norm
from torch_gfshadow.bounds.lemma2 import factor_error

_UP = 1 + 1e-12


class Node:
    """A point with everything measured there, as plain floats, each computed when asked for.

    Args:
        point: One network (no leading axes) and its loss.
    """

    def __init__(self, point: Point) -> None:
        self.point = point
        chain = point.chain
        self.depth, self.size = chain.depth, chain.size
        self.outputs = min(chain.widths[0], chain.widths[-1])
        self.smoothness = point.loss.smoothness
        self._norms: dict[tuple[int, int], float] = {}

    def norm(self, i: int, j: int) -> float:
        """‖W_{i:j}‖, 1 for i = j − 1."""
        if (i, j) not in self._norms:
            self._norms[i, j] = float(self.point.chain.norm(i, j))
        return self._norms[i, j]

    @cached_property
    def theta(self) -> Matrix:
        """θ as one vector."""
        return self.point.chain.vector()

    @cached_property
    def gradient(self) -> Matrix:
        """∇f(θ) as one vector."""
        return flat(self.point.gradient())

    @cached_property
    def gradient_error(self) -> float:
        """A bound on the rounding of the gradient."""
        return float(self.point.gradient_error())

    @cached_property
    def hessian(self) -> Matrix:
        """∇²f(θ), dense."""
        return self.point.hessian()

    @cached_property
    def hessian_error(self) -> float:
        """A bound on the rounding of the Hessian and its eigenvalues."""
        return float(self.point.hessian_error())

    @cached_property
    def negative_curvature(self) -> float:
        """−λ_min(∇²f(θ)), rounded up; negative where f is strictly convex."""
        if not np.isfinite(self.hessian).all():
            return math.inf
        return float(-np.linalg.eigvalsh(self.hessian)[0]) + self.hessian_error

    @cached_property
    def blocks(self) -> dict[tuple[int, int], float]:
        """‖W_{j−1:1} Gᵀ W_{n:k+1}‖ for j < k."""
        return {
            (low, high): float(
                spectral_norm(self.point.cross_factors(low, high)[0])
                + factor_error(self.point, low, high)
            )
            for low, high in combinations(range(1, self.depth + 1), 2)
        }

    @cached_property
    def outer_norm(self) -> float:
        """‖G‖."""
        return float(self.point.outer_norm)

    @cached_property
    def outer_frobenius(self) -> float:
        """‖G‖_F."""
        return float(self.point.outer_frobenius)


class Ball:
    """Upper limits over {q : ‖q − θ‖ ≤ radius}.

    Attributes:
        node: The centre θ.
        radius: ρ ≥ 0, in θ.
    """

    def __init__(self, node: Node, radius: float) -> None:
        self.node, self.radius = node, radius
        n = node.depth
        u: dict[tuple[int, int], float] = {}
        for j in range(1, n + 2):
            u[j - 1, j] = 1.0
            for i in range(j, n + 1):
                moved = sum(node.norm(i, k + 1) * u[k - 1, j] for k in range(j, i + 1))
                u[i, j] = (node.norm(i, j) + radius * moved) * _UP
        self._u = u
        self._moved = (u[n, 1] - node.norm(n, 1)) * node.smoothness * _UP
        self.outer_norm = node.outer_norm + self._moved

    @cached_property
    def first(self) -> float:
        """‖dW/dθ‖: the root of Σ_j ‖W_{n:j+1}‖²‖W_{j−1:1}‖²."""
        n, u = self.node.depth, self._u
        parts = (u[n, j + 1] * u[j - 1, 1] for j in range(1, n + 1))
        return math.sqrt(sum(part * part for part in parts)) * _UP

    @cached_property
    def second(self) -> float:
        """Half of ‖d²W/dθ²‖: λ_max(B)/2, B_jk = ‖W_{n:k+1}‖‖W_{k−1:j+1}‖‖W_{j−1:1}‖."""
        n, u = self.node.depth, self._u
        b = np.zeros((n, n))
        for j, k in combinations(range(1, n + 1), 2):
            b[j - 1, k - 1] = b[k - 1, j - 1] = u[n, k + 1] * u[k - 1, j + 1] * u[j - 1, 1]
        return _top(b) / 2 * _UP

    @cached_property
    def third(self) -> float:
        """A sixth of ‖d³W/dθ³‖: C(n, 3) n^{−3/2} times the largest product of four norms."""
        n, u = self.node.depth, self._u
        products = (
            u[n, k + 1] * u[k - 1, j + 1] * u[j - 1, i + 1] * u[i - 1, 1]
            for i, j, k in combinations(range(1, n + 1), 3)
        )
        return float(math.comb(n, 3) * n**-1.5 * max(products, default=0.0) * _UP)

    @cached_property
    def curvature_by_norms(self) -> float:
        """−λ_min for mode A: by Eq. 13, the loosest."""
        n = self.node.depth
        widest = sorted(self._u[j, j] for j in range(1, n + 1))[2:]
        outer = self.node.outer_frobenius + self._moved
        return (n - 1) * math.sqrt(self.node.outputs) * outer * math.prod(widest) * _UP

    @cached_property
    def curvature_by_blocks(self) -> float:
        """−λ_min for mode B: by the norms of the Hessian's blocks."""
        n, u, node, g = self.node.depth, self._u, self.node, self.outer_norm
        c = np.zeros((n, n))
        for (j, k), block in node.blocks.items():
            all_moved = g * u[j - 1, 1] * u[n, k + 1]
            still = node.norm(j - 1, 1) * node.outer_norm * node.norm(n, k + 1)
            outer = min(block + max(all_moved - still, 0.0) + 1e-15 * all_moved, all_moved)
            c[j - 1, k - 1] = c[k - 1, j - 1] = outer * u[k - 1, j + 1]
        return _top(c) * _UP

    @cached_property
    def hessian_slope(self) -> float:
        """L_H: ‖∇²f(q) − ∇²f(q')‖ ≤ L_H ‖q − q'‖."""
        loss = self.node.point.loss
        # products, not powers: a float overflows to infinity in the one and raises in the other
        from_loss = 6 * self.node.smoothness * self.first * self.second
        if loss.third:
            from_loss += loss.third * self.first * self.first * self.first
        return (from_loss + 6 * self.outer_norm * self.third) * _UP

    @cached_property
    def smoothness(self) -> float:
        """β: ‖∇²f‖."""
        return (self.node.smoothness * self.first * self.first + self.curvature_by_blocks) * _UP

    @cached_property
    def steepest(self) -> float:
        """γ: ‖∇f‖."""
        return (self.node.outer_frobenius + self._moved) * self.first * _UP


def _top(symmetric: Matrix) -> float:
    """Return λ_max of a matrix of norms, ∞ where one of them overflowed."""
    return float(top_eigenvalue(symmetric)) if np.isfinite(symmetric).all() else math.inf
