"""Losses that are means over samples of a convex function of the scores W x_i.

Derivatives are float64 and come with a bound on their own rounding, as those in _losses.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from torch_gfshadow.bounds._inputs import Matrix, matrix
from torch_gfshadow.bounds._norms import UNIT, spectral_norm


class _FromScores:
    """A loss that is a mean over samples of ℓ_i(W x_i), ℓ_i with bounded derivatives."""

    _second: float
    _third: float

    def __init__(self, inputs: Any, targets: Matrix) -> None:
        self.inputs, self.targets = matrix("X", inputs, (targets.shape[0], None)), targets
        self.n_samples = self.inputs.shape[0]
        self.shape = targets.shape[1], self.inputs.shape[1]
        lengths = np.sqrt((self.inputs**2).sum(1))
        covariance = self.inputs.T @ self.inputs / self.n_samples
        slack = 1 + self.n_samples * self.shape[1] * UNIT
        self.smoothness = self._second * float(spectral_norm(covariance)) * slack
        self.third = self._third * float((lengths**3).mean()) * slack
        self._mean_square = float((lengths**2).mean())

    def _slopes(self, scores: Matrix) -> Matrix:
        raise NotImplementedError

    def _bends(self, scores: Matrix) -> Matrix:
        raise NotImplementedError

    def gradient(self, end: Matrix) -> Matrix:
        """Return mean ∇ℓ_i(W x_i) x_iᵀ."""
        slopes = self._slopes(self.inputs @ np.swapaxes(end, -1, -2))
        return np.asarray(np.swapaxes(slopes, -1, -2) @ self.inputs / self.n_samples)

    def curvature(self, end: Matrix, direction: Matrix) -> Any:
        """Return mean ∇²ℓ_i(W x_i)[D x_i, D x_i]."""
        bends = self._bends(self.inputs @ np.swapaxes(end, -1, -2))
        moved = self.inputs @ np.swapaxes(direction, -1, -2)
        return np.einsum("...sij,...si,...sj->...", bends, moved, moved) / self.n_samples

    def hessian(self, end: Matrix) -> Matrix:
        """Return mean ∇²ℓ_i(W x_i) ⊗ x_i x_iᵀ."""
        bends = self._bends(self.inputs @ np.swapaxes(end, -1, -2))
        x, size = self.inputs, self.shape[0] * self.shape[1]
        blocks = np.einsum("...sij,sa,sb->...iajb", bends, x, x, optimize=True) / self.n_samples
        return np.asarray(blocks.reshape(*blocks.shape[:-4], size, size))

    def gradient_error(self, end_norm: Any, end_error: Any) -> Any:
        """Bound the rounding of the mean: of the scores, of the slopes, of the sum."""
        scores = UNIT * (self.shape[1] + 2) * end_norm + end_error
        slopes = self._second * scores * self._mean_square
        return slopes + UNIT * (self.n_samples + 8) * 2 * math.sqrt(self._mean_square)


class CrossEntropy(_FromScores):
    """mean −log softmax(Wx)_y over labels y in 0, …, d_n − 1 (one-hot rows are taken too)."""

    _second, _third = 0.5, 2**1.5 / (6 * math.sqrt(3))

    def value(self, end: Matrix) -> Any:
        """Return the mean cross-entropy, in nats."""
        scores = self.inputs @ np.swapaxes(end, -1, -2)
        top = scores.max(-1, keepdims=True)
        total = np.log(np.exp(scores - top).sum(-1)) + top[..., 0]
        return (total - (scores * self.targets).sum(-1)).mean(-1)

    def _slopes(self, scores: Matrix) -> Matrix:
        return np.asarray(_softmax(scores) - self.targets)

    def _bends(self, scores: Matrix) -> Matrix:
        p = _softmax(scores)
        return np.asarray(p[..., None] * np.eye(self.shape[0]) - p[..., :, None] * p[..., None, :])


class Logistic(_FromScores):
    """mean log(1 + e^{−y·Wx}) over labels y = ±1, d_n = 1."""

    _second, _third = 0.25, 1 / (6 * math.sqrt(3))

    def value(self, end: Matrix) -> Any:
        """Return the mean logistic loss, in nats."""
        scores = self.inputs @ np.swapaxes(end, -1, -2)
        return np.logaddexp(0.0, -self.targets * scores).mean((-2, -1))

    def _slopes(self, scores: Matrix) -> Matrix:
        return np.asarray(-self.targets * np.exp(-np.logaddexp(0.0, self.targets * scores)))

    def _bends(self, scores: Matrix) -> Matrix:
        z = np.abs(scores)
        return np.asarray(np.exp(-z - 2 * np.logaddexp(0.0, -z))[..., None])


def _softmax(scores: Matrix) -> Matrix:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
