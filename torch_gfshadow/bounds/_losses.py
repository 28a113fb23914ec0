"""Convex losses φ of the end-to-end matrix W (d_n × d_0), f(θ) = φ(W_n ⋯ W_1).

Means over the S samples, which are the rows of X (S × d_0). Derivatives are float64; each comes
with a bound on its own rounding, so that what is built on it can be certified.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from torch_gfshadow.bounds._inputs import Matrix, matrix
from torch_gfshadow.bounds._norms import UNIT, frobenius, spectral_norm
from torch_gfshadow.bounds._scores import CrossEntropy, Logistic
from torch_gfshadow.errors import AssumptionError, must

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


def _trace(a: Matrix) -> Matrix:
    return np.asarray(np.trace(a, axis1=-2, axis2=-1))


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
