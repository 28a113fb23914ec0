"""Algebra of deep linear networks: f(θ) = φ(W), W = W_n ⋯ W_1, θ = (W_1, …, W_n) row by row.

At one point: the gradient, the Hessian and its blocks, each with a bound on its rounding. As in
_chain.py every matrix may carry leading axes, and norms are rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from torch_gfshadow.bounds._chain import Chain
from torch_gfshadow.bounds._inputs import Matrix, layers, matrix
from torch_gfshadow.bounds._losses import Loss, loss_of
from torch_gfshadow.bounds._norms import UNIT, frobenius, spectral_norm


class Point:
    """f at one point: gradient, Hessian and their norms, of a chain and a loss.

    Args:
        chain: The network.
        loss: φ.
    """

    def __init__(self, chain: Chain, loss: Loss) -> None:
        self.chain, self.loss = chain, loss

    @cached_property
    def outer(self) -> Matrix:
        """G = ∇φ(W)."""
        return self.loss.gradient(self.chain.end)

    @cached_property
    def outer_error(self) -> Any:
        """A bound on the rounding of G in Frobenius norm."""
        n = self.chain.depth
        return self.loss.gradient_error(frobenius(self.chain.end), self.chain.error(n, 1))

    @cached_property
    def outer_norm(self) -> Any:
        """‖G‖, rounded up."""
        return spectral_norm(self.outer) + self.outer_error

    @cached_property
    def outer_frobenius(self) -> Any:
        """‖G‖_F, rounded up."""
        return frobenius(self.outer) + self.outer_error

    def gradient(self) -> tuple[Matrix, ...]:
        """Return ∇f as one matrix per layer: W_{n:j+1}ᵀ G W_{j−1:1}ᵀ."""
        chain = self.chain
        return tuple(
            _t(chain.product(chain.depth, j + 1)) @ self.outer @ _t(chain.product(j - 1, 1))
            for j in range(1, chain.depth + 1)
        )

    def gradient_error(self) -> Any:
        """Bound the rounding of ``gradient()`` in Frobenius norm over all layers."""
        chain, n = self.chain, self.chain.depth
        total, width = 0.0, max(chain.widths)
        size = frobenius(self.outer)
        for j in range(1, n + 1):
            left, right = frobenius(chain.product(n, j + 1)), frobenius(chain.product(j - 1, 1))
            made = 2 * width * UNIT * left * right * size
            given = chain.norm(n, j + 1) * chain.norm(j - 1, 1) * self.outer_error
            bent = chain.error(n, j + 1) * right + left * chain.error(j - 1, 1)
            total = total + (made + given + bent * size) ** 2
        return np.sqrt(total)

    def cross_block(self, low: int, high: int) -> Matrix:
        """Return block (high, low) of N, the part of the Hessian that G carries (Lemma 1).

        Its entry ((b, c), (e, a)) is (W_{low−1:1} Gᵀ W_{n:high+1})[a, b] · W_{high−1:low+1}[c, e].
        """
        chain = self.chain
        outer, inner = self.cross_factors(low, high)
        rows = chain.widths[high] * chain.widths[high - 1]
        columns = chain.widths[low] * chain.widths[low - 1]
        block = np.einsum("...ab,...ce->...bcea", outer, inner)
        return np.asarray(block.reshape(*block.shape[:-4], rows, columns))

    def cross_factors(self, low: int, high: int) -> tuple[Matrix, Matrix]:
        """Return W_{low−1:1} Gᵀ W_{n:high+1} and W_{high−1:low+1}."""
        chain = self.chain
        tail = _t(self.outer) @ chain.product(chain.depth, high + 1)
        return chain.product(low - 1, 1) @ tail, chain.product(high - 1, low + 1)

    def jacobian(self) -> Matrix:
        """Return dvec(W)/dθ, d_n·d_0 × d."""
        chain, n = self.chain, self.chain.depth
        blocks = [
            _kron(chain.product(n, j + 1), _t(chain.product(j - 1, 1))) for j in range(1, n + 1)
        ]
        return np.concatenate(
            [np.broadcast_to(b, (*chain.batch, *b.shape[-2:])) for b in blocks], -1
        )

    def hessian(self, *, gauss_newton: bool = True) -> Matrix:
        """Return ∇²f (d × d), or without ``gauss_newton`` its part N that depends on G."""
        chain, n = self.chain, self.chain.depth
        ends = np.cumsum([0, *(w.shape[-2] * w.shape[-1] for w in chain.weights)])
        full = np.zeros((*chain.batch, chain.size, chain.size))
        for low in range(1, n + 1):
            for high in range(low + 1, n + 1):
                rows, columns = slice(*ends[high - 1 : high + 1]), slice(*ends[low - 1 : low + 1])
                block = self.cross_block(low, high)
                full[..., rows, columns] = block
                full[..., columns, rows] = _t(block)
        if gauss_newton:
            jacobian = self.jacobian()
            full += _t(jacobian) @ self.loss.hessian(chain.end) @ jacobian
        return full

    def hessian_error(self) -> Any:
        """Bound, in spectral norm, the rounding of ``hessian()`` and of its eigenvalues."""
        chain, n = self.chain, self.chain.depth
        norms = [frobenius(w) for w in chain.weights]
        first = sum(_leave_out(norms, (j,)) ** 2 for j in range(n))
        pairs = sum(_leave_out(norms, (j, k)) for j in range(n) for k in range(j))
        scale = self.loss.smoothness * first + 2 * pairs * self.outer_frobenius
        sums = max(chain.widths) * (2 * n + 4) + self.loss.shape[0] * self.loss.shape[1]
        return UNIT * (chain.size + sums) * scale


def network(weights: Any, inputs: Any, targets: Any, loss: str) -> tuple[Chain, Loss]:
    """Return the checked network ``weights`` and the loss of the samples.

    Raises:
        AssumptionError: If a shape, the depth or the loss does not fit, or W overflows.
    """
    chain = Chain(layers("Ws", weights))
    matrix("X", inputs, (None, chain.widths[0]))
    phi = loss_of(inputs, targets, loss, n_outputs=chain.widths[-1])
    with np.errstate(all="ignore"):
        matrix("W_n ⋯ W_1", chain.end)
    return chain, phi


def top_eigenvalue(symmetric: Matrix) -> Matrix:
    """Return λ_max of a symmetric, nonnegative matrix with zero diagonal, rounded up."""
    size = symmetric.shape[-1]
    if size == 2:
        return np.asarray(symmetric[..., 0, 1])
    values = np.linalg.eigvalsh(symmetric)
    return np.asarray(values[..., -1] + 4 * size * UNIT * np.abs(values).max(-1))


def _leave_out(factors: Sequence[Any], omit: tuple[int, ...]) -> Any:
    # recomputed, not divided: a factor may be 0
    product = 1.0
    for index, factor in enumerate(factors):
        if index not in omit:
            product = product * factor
    return product


def _kron(a: Matrix, b: Matrix) -> Matrix:
    block = np.einsum("...ij,...kl->...ikjl", a, b)
    rows, columns = a.shape[-2] * b.shape[-2], a.shape[-1] * b.shape[-1]
    return np.asarray(block.reshape(*block.shape[:-4], rows, columns))


def _t(a: Matrix) -> Matrix:
    return np.swapaxes(a, -1, -2)
