"""Convex losses φ of the end-to-end matrix W (d_n × d_0), f(θ) = φ(W_n ⋯ W_1).

Means over the S samples, which are the rows of X (S × d_0). Derivatives are float64; each comes
with a bound on its own rounding, so that what is built on it can be certified.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from torch_gfshadow.bounds._inputs import Matrix, matrix
from torch_gfshadow.errors import AssumptionError, must

UNIT = 2.0**-52
"""Spacing of floats at 1: twice the relative rounding error of one operation."""

LOSSES = ("square", "cross_entropy", "logistic")


class Loss(Protocol):
    """φ, convex and C², with the constants the bounds are made of."""

    @property
    def smoothness(self) -> float:
        """Upper limit of ‖φ''(W)‖ over all W (L_φ)."""

    @property
    def third(self) -> float:
        """Upper limit of |φ'''(W)[U, U, U]| / ‖U‖³_F over all W; 0 if φ is quadratic."""

    @property
    def shape(self) -> tuple[int, int]:
        """(d_n, d_0)."""

    def value(self, end: Matrix) -> Any:
        """Return φ(W)."""

    def gradient(self, end: Matrix) -> Matrix:
        """Return ∇φ(W), of the shape of W."""

    def curvature(self, end: Matrix, direction: Matrix) -> Any:
        """Return φ''(W)[D, D]."""

    def hessian(self, end: Matrix) -> Matrix:
        """Return φ''(W) as a matrix on row-major vec(W)."""

    def gradient_error(self, end_norm: Any, end_error: Any) -> Any:
        """Bound the rounding of ∇φ(W) in Frobenius norm, given ‖W‖_F and the error of W."""


@dataclass(frozen=True, eq=False)
class Square:
    """½ mean ‖Wx − y‖² = ½ tr(WΛ_xxWᵀ) − tr(Λ_yxWᵀ) + constant.

    Attributes:
        lxx: Λ_xx = XᵀX/S, d_0 × d_0, positive semidefinite; the identity for whitened data.
        lyx: Λ_yx = YᵀX/S, d_n × d_0.
        constant: ½ mean ‖y‖².
        n_samples: S where both were computed from samples, for their rounding; 0: given exactly.
    """

    lxx: Matrix
    lyx: Matrix
    constant: Any = 0.0
    n_samples: int = 0
    third: float = 0.0

    @classmethod
    def of(cls, inputs: Any, targets: Any) -> Square:
        """Build the loss of the samples ``inputs`` (S × d_0) and ``targets`` (S × d_n)."""
        x = matrix("X", inputs)
        y = matrix("Y", targets, (x.shape[0], None))
        size = x.shape[0]
        return cls(x.T @ x / size, y.T @ x / size, 0.5 * float((y * y).sum()) / size, size)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_n, d_0)."""
        return self.lyx.shape[-2], self.lyx.shape[-1]

    @cached_property
    def smoothness(self) -> float:
        """‖Λ_xx‖, rounded up."""
        return float(spectral_norm(self.lxx).max()) + self._data_error(self.lxx, self.lxx)

    def value(self, end: Matrix) -> Any:
        """Return ½ tr(WΛ_xxWᵀ) − tr(Λ_yxWᵀ) + constant."""
        return (end * (0.5 * end @ self.lxx - self.lyx)).sum((-2, -1)) + self.constant

    def gradient(self, end: Matrix) -> Matrix:
        """Return WΛ_xx − Λ_yx."""
        return np.asarray(end @ self.lxx - self.lyx)

    def curvature(self, end: Matrix, direction: Matrix) -> Any:
        """Return tr(DΛ_xxDᵀ)."""
        return ((direction @ self.lxx) * direction).sum((-2, -1))

    def hessian(self, end: Matrix) -> Matrix:
        """Return I ⊗ Λ_xx."""
        rows, columns = self.shape
        blocks = np.einsum("ij,...ab->...iajb", np.eye(rows), self.lxx)
        return np.asarray(blocks.reshape(*blocks.shape[:-4], rows * columns, rows * columns))

    def gradient_error(self, end_norm: Any, end_error: Any) -> Any:
        """Bound the rounding of WΛ_xx − Λ_yx, that of the two Λ included."""
        lxx, lyx = frobenius(self.lxx), frobenius(self.lyx)
        size = UNIT * (self.shape[1] + 2)
        products = size * (end_norm * lxx + lyx)
        data = end_norm * self._data_error(self.lxx, self.lxx)
        # tr Λ_yy = 2·constant where the samples are known; without them Λ_yx is exact
        data = data + self.n_samples * UNIT * np.sqrt(2 * abs(self.constant) * _trace(self.lxx))
        return products + lxx * end_error + data

    def _data_error(self, left: Matrix, right: Matrix) -> float:
        return float(self.n_samples * UNIT * np.sqrt(_trace(left) * _trace(right)).max())


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


def loss_of(
    inputs: Any, targets: Any, loss: str = "square", *, n_outputs: int | None = None
) -> Loss:
    """Build the convex loss that ``loss`` names; what follows a ":" is a comment.

    Args:
        inputs: X, S × d_0.
        targets: S × d_n; for the cross-entropy labels, for the logistic loss signs, will do.
        loss: "square", "cross_entropy" or "logistic".
        n_outputs: d_n, if the network is known.

    Raises:
        AssumptionError: If the loss is another, or the targets do not suit it.
    """
    name = loss_name(loss)
    if name == "square":
        x = matrix("X", inputs)
        return Square.of(x, matrix("Y", _columns(targets), (x.shape[0], n_outputs)))
    if name == "cross_entropy":
        return CrossEntropy(inputs, _one_hot(targets, n_outputs))
    if name == "logistic":
        if n_outputs not in (None, 1):
            fix = "The logistic loss has one score; use cross_entropy for more."
            raise AssumptionError(must("d_n", "1 for the logistic loss", n_outputs, fix))
        signs = matrix("Y", _columns(targets), (None, 1))
        if not (np.abs(signs) == 1.0).all():
            bad = signs[np.abs(signs) != 1.0].flat[0]
            raise AssumptionError(must("Y", "±1 for the logistic loss", bad, "Map 0 to −1."))
        return Logistic(inputs, signs)
    fix = "The result needs φ convex and C²: the loss of the end-to-end matrix, not its root."
    raise AssumptionError(must("loss", f"one of {', '.join(LOSSES)}", repr(loss), fix))


def loss_name(loss: Any) -> str:
    """Return the name that a loss was meant by: in capitals, with a hyphen, with a comment."""
    return str(loss).partition(":")[0].strip().lower().replace("-", "_").replace(" ", "_")


def spectral_norm(a: Matrix) -> Any:
    """Return ‖a‖ for every matrix of the stack, rounded up; ∞ for one that overflowed."""
    rows, columns = a.shape[-2:]
    if not np.isfinite(a).all():
        finite = np.asarray(np.isfinite(a).all((-2, -1)))
        return np.where(finite, spectral_norm(np.where(finite[..., None, None], a, 0.0)), np.inf)
    if min(rows, columns) == 1:
        return np.asarray(frobenius(a))
    slack = 1 + 8 * (rows + columns) * UNIT
    if max(rows, columns) >= 4 * min(rows, columns):
        # of a long matrix the small Gram matrix knows the largest singular value as well
        t = np.swapaxes(a, -1, -2)
        gram = a @ t if rows < columns else t @ a
        return np.asarray(np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[..., -1], 0.0)) * slack)
    return np.asarray(np.linalg.svd(a, compute_uv=False)[..., 0] * slack)


def frobenius(a: Matrix) -> Any:
    """Return ‖a‖_F for every matrix of the stack, rounded up."""
    rows, columns = a.shape[-2:]
    return np.asarray(np.sqrt(np.einsum("...ij,...ij->...", a, a)) * (1 + rows * columns * UNIT))


def times(a: Any, b: Any) -> Any:
    """Return a·b ≥ 0 with 0·∞ = 0: a factor of exactly 0 decides, whatever overflowed beside it."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where((np.asarray(a) == 0.0) | (np.asarray(b) == 0.0), 0.0, a * b)


def _trace(a: Matrix) -> Matrix:
    return np.asarray(np.trace(a, axis1=-2, axis2=-1))


def _softmax(scores: Matrix) -> Matrix:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def _columns(targets: Any) -> Any:
    """Return one number per sample as a column, anything else as it is."""
    if isinstance(targets, (list, tuple)):
        return (
            [[t] for t in targets] if not any(hasattr(t, "__len__") for t in targets) else targets
        )
    return targets[:, None] if getattr(targets, "ndim", None) == 1 else targets


def _one_hot(targets: Any, n_classes: int | None) -> Matrix:
    labels = matrix("Y", _columns(targets))
    if labels.shape[1] > 1:
        return matrix("Y", labels, (None, n_classes))
    flat = labels[:, 0]
    top = n_classes or int(max(flat.max(), 1)) + 1
    wrong = flat[(flat < 0) | (flat != np.round(flat)) | (flat >= top)]
    if wrong.size:
        fix = "Give class labels, or one-hot rows."
        raise AssumptionError(must("Y", f"labels in 0, …, {top - 1}", wrong[0], fix))
    return np.asarray(np.eye(top)[flat.astype(int)])
