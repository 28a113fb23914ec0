"""Whitening and label normalisation: real data in the form Proposition 3 and Theorem 4 assume.

With Λ_xx = XᵀX/S = VΣ²Vᵀ the whitened inputs x V Σ^{−1} have Λ_xx = I, and labels divided by
‖Λ_yx‖_F have ‖Λ_yx‖_F = 1. The square loss of a linear map W of them is then
½‖W − Λ_yx‖²_F + min f. Means are not subtracted: add a column of ones for an offset.

Gradient descent in whitened coordinates is another method than in raw ones (it is preconditioned).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_gfshadow.errors import AssumptionError, must

RTOL = 1e-6
"""Singular values below this share of the largest count as zero: right for measured data."""


@dataclass(frozen=True, eq=False)
class Whitened:
    """Whitened inputs, normalised labels, and the way back.

    Attributes:
        inputs: Shape ``[S, r]``, float64, with Λ_xx = I; r is the rank of the data.
        targets: Labels divided by ``scale``; shape ``[S, d_n]``.
        transform: VΣ^{−1}, shape ``[d_0, r]``: ``inputs = X @ transform``.
        scale: ‖Λ_yx‖_F of the labels in whitened coordinates, in units of the labels.
        minimum: Smallest value of ½ mean ‖Wx − y‖² over linear maps W, in units of scale².
    """

    inputs: Tensor
    targets: Tensor
    transform: Tensor
    scale: float
    minimum: float

    @property
    def rank(self) -> int:
        """Number of whitened coordinates, r."""
        return self.transform.shape[1]

    def apply(self, inputs: Tensor) -> Tensor:
        """Return other raw inputs, shape ``[…, d_0]``, in whitened coordinates, ``[…, r]``.

        What lies outside the span of the data is dropped.
        """
        return inputs.to(self.transform) @ self.transform

    def end_to_end(self, weight: Tensor) -> Tensor:
        """Return the map on raw inputs and labels, ``[d_n, d_0]``, of one on whitened ones.

        Args:
            weight: W_n ⋯ W_1, shape ``[d_n, r]``.
        """
        return self.scale * weight.to(self.transform) @ self.transform.T


def whiten(inputs: Tensor, targets: Tensor, *, rtol: float = RTOL, reduce: bool = True) -> Whitened:
    """Whiten inputs and normalise labels.

    By the singular values of X, not the eigenvalues of its covariance, which would square the
    condition number. Data of rank r below d_0 become r coordinates: in d_0 of them Λ_xx would be
    a projector, for which the convergence results do not hold.

    Args:
        inputs: X, shape ``[S, d_0]``, one sample per row; images are to be flattened.
        targets: Labels, shape ``[S]`` or ``[S, d_n]``.
        rtol: Singular values up to ``rtol`` (and ``max(S, d_0)`` roundings) of the largest are 0.
        reduce: Whether a rank below d_0 is accepted, and fewer coordinates returned.

    Returns:
        Everything in float64 on the CPU.

    Raises:
        AssumptionError: If the data are not finite, shapes disagree, the rank is below d_0 without
            ``reduce``, or no label depends on the inputs (Λ_yx = 0).
    """
    x, y = _checked(inputs, targets)
    if not 0.0 <= rtol < 1.0:
        raise AssumptionError(must("rtol", "in [0, 1)", rtol, "Try 1e-6."))
    samples, d0 = x.shape
    _, sigma, vt = torch.linalg.svd(x / math.sqrt(samples), full_matrices=False)
    floor = max(rtol, max(samples, d0) * torch.finfo(torch.float64).eps)
    rank = int((sigma > floor * float(sigma[0])).sum())
    if rank == 0:
        raise AssumptionError(must("X", "not zero", "all zeros", "Nothing can be whitened."))
    if rank < d0 and not reduce:
        fix = f"Pass reduce=True and train in {rank} coordinates."
        raise AssumptionError(must("rank of X", f"d_0 = {d0} without reduce", rank, fix))
    transform = vt[:rank].T / sigma[:rank]
    white = x @ transform
    cross = y.T @ white / samples
    scale = float(torch.linalg.vector_norm(cross))
    size = math.sqrt(float(y.square().sum()) / samples)
    if scale <= 1e-12 * size:
        fix = "The best linear map is zero: there is nothing to learn."
        raise AssumptionError(must("‖Λ_yx‖_F", "above rounding", f"{scale:.3g}", fix))
    minimum = max(0.0, 0.5 * ((size / scale) ** 2 - 1.0))
    return Whitened(white, y / scale, transform, scale, minimum)


def _checked(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    x = torch.as_tensor(inputs).detach().to("cpu", torch.float64)
    y = torch.as_tensor(targets).detach().to("cpu", torch.float64)
    if x.ndim != 2 or 0 in x.shape:
        fix = "Flatten each sample to a row."
        raise AssumptionError(must("X", "of shape [S, d_0]", f"shape {tuple(x.shape)}", fix))
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or len(y) != len(x):
        got = f"shape {tuple(targets.shape)} for {len(x)} samples"
        raise AssumptionError(must("targets", "one row per sample", got, "Samples are rows."))
    for name, tensor in (("X", x), ("targets", y)):
        if not bool(torch.isfinite(tensor).all()):
            bad = float(tensor[~torch.isfinite(tensor)][0])
            raise AssumptionError(must(name, "finite", bad, "Clean the data first."))
    return x, y
