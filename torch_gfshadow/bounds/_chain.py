"""Products of weight matrices W_{i:j} = W_i ⋯ W_j and their norms.

W_{i:j} is the identity for i = j − 1. Layers count from 1 as in the paper. Every matrix may carry
leading axes, one network per entry. Norms are rounded up: they cover the rounding of the products
they are taken of, assuming LAPACK meets its backward error bounds and nothing underflows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from torch_gfshadow.bounds._inputs import Matrix
from torch_gfshadow.bounds._norms import UNIT, frobenius, spectral_norm, times


class Chain:
    """The partial products of W_n ⋯ W_1 and their spectral norms, each computed once.

    Args:
        weights: W_1, …, W_n, W_j of shape … × d_j × d_{j−1}.
    """

    def __init__(self, weights: Sequence[Matrix]) -> None:
        self.weights = tuple(weights)
        self.depth = len(self.weights)
        first = self.weights[0]
        self.widths = (first.shape[-1], *(w.shape[-2] for w in self.weights))
        self.size = sum(w.shape[-2] * w.shape[-1] for w in self.weights)
        self.batch = first.shape[:-2]
        self._products: dict[tuple[int, int], Matrix] = {}
        self._errors: dict[tuple[int, int], Any] = {}
        self._norms: dict[tuple[int, int], Matrix] = {}

    def product(self, i: int, j: int) -> Matrix:
        """Return W_{i:j}; the identity of the right size for i = j − 1."""
        if i < j:
            return np.eye(self.widths[i])
        if (i, j) not in self._products:
            last = self.weights[i - 1]
            self._products[i, j] = last if i == j else last @ self.product(i - 1, j)
        return self._products[i, j]

    def error(self, i: int, j: int) -> Any:
        """Bound the rounding of ``product(i, j)`` in Frobenius norm."""
        if i <= j:
            return 0.0
        if (i, j) not in self._errors:
            width, before = self.widths[i - 1], self.product(i - 1, j)
            made = times(width * UNIT * frobenius(self.weights[i - 1]), frobenius(before))
            self._errors[i, j] = times(self.norm(i, i), self.error(i - 1, j)) + made
        return self._errors[i, j]

    def norm(self, i: int, j: int) -> Any:
        """Return an upper limit of ‖W_{i:j}‖."""
        if i < j:
            return 1.0
        if (i, j) not in self._norms:
            norm = spectral_norm(self.product(i, j))
            if i > j:
                norm = np.minimum(
                    norm + self.error(i, j), self.norm(i, i) * self.norm(i - 1, j) * (1 + UNIT)
                )
            self._norms[i, j] = norm
        return self._norms[i, j]

    @property
    def end(self) -> Matrix:
        """W_{n:1}, the end-to-end matrix."""
        return self.product(self.depth, 1)

    @cached_property
    def norms(self) -> tuple[Matrix, ...]:
        """‖W_1‖, …, ‖W_n‖, rounded up."""
        return tuple(self.norm(j, j) for j in range(1, self.depth + 1))

    def vector(self) -> Matrix:
        """Return θ."""
        return flat(self.weights)


def flat(matrices: Sequence[Matrix]) -> Matrix:
    """Return the matrices as one vector, row by row, in torch's order of parameters."""
    return np.concatenate([m.reshape(*m.shape[:-2], -1) for m in matrices], -1)


def unflat(vector: Matrix, like: Sequence[Matrix]) -> tuple[Matrix, ...]:
    """Return ``vector`` as matrices of the shapes of ``like``."""
    out, start = [], 0
    for m in like:
        rows, columns = m.shape[-2:]
        piece = vector[..., start : start + rows * columns]
        out.append(piece.reshape(*vector.shape[:-1], rows, columns))
        start += rows * columns
    return tuple(out)
