"""Norms of matrices, and of stacks of them, rounded up by what they can have lost."""

from __future__ import annotations

from typing import Any

import numpy as np

from torch_gfshadow.bounds._inputs import Matrix

UNIT = 2.0**-52
"""Spacing of floats at 1: twice the relative rounding error of one operation."""


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
