"""Norms as upper limits, never estimates: from dense decompositions, with room for rounding."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

DENSE_LIMIT = 1500
"""Largest side of a matrix whose eigenvalues are computed; beyond it its trace bounds them."""

_ENTRIES = 2**23  # of unfolded samples in memory at a time: 64 MB
_SMALL = 10**7  # operations spent on norms of single samples
SAFETY = 1 + 1e-11
"""What float64 products and decompositions may be wrong by, with room to spare."""


Blocks = Callable[[Tensor], list[Tensor]]
"""v ↦ M(v) of every sample, ``[S, rows, columns]``; of several blocks M is the block diagonal."""


def spectral_norm(matrix: Tensor) -> float:
    """Return an upper limit of ‖A‖₂, tight up to rounding unless A is very large."""
    wide = matrix.detach().double()
    if not wide.numel():
        return 0.0
    size = float(wide.abs().max())
    if size == 0.0 or not math.isfinite(size):
        return 0.0 if size == 0.0 else math.inf
    wide = wide / size  # or the squares would leave the range of a float
    gram = wide @ wide.mT if wide.shape[0] <= wide.shape[1] else wide.mT @ wide
    return size * math.sqrt(_largest_eigenvalue(gram)) * SAFETY


def stacked_norm(make: Blocks, vectors: Tensor, c: Tensor) -> float:
    """Return an upper limit of ‖[√c_i M(v_i)]_i‖₂, samples stacked.

    Args:
        make: v ↦ M(v), a method of a layer; samples are unfolded a few at a time.
        vectors: v_i, ``[S, …]``.
        c: Weights ≥ 0, ``[S]``.
    """
    n = _at_a_time(make, vectors)
    if n >= len(vectors):
        return max(spectral_norm(_scaled(b, c)) for b in make(vectors))
    totals: list[Tensor] = []
    for part, weight in zip(torch.split(vectors, n), torch.split(c, n), strict=True):
        grams = [_gram(_scaled(b, weight)) for b in make(part)]
        totals = [a + g for a, g in zip(totals, grams, strict=True)] if totals else grams
    return max(math.sqrt(_largest_eigenvalue(g)) for g in totals) * SAFETY


def sample_norms(make: Blocks, vectors: Tensor) -> Tensor:
    """Return ‖M(v_i)‖ of every sample, ``[S]``: spectral where that is cheap, else Frobenius."""
    parts = torch.split(vectors, _at_a_time(make, vectors))
    return torch.cat([torch.stack([_each_norm(b) for b in make(v)]).amax(0) for v in parts])


def _at_a_time(make: Blocks, vectors: Tensor) -> int:
    return max(1, _ENTRIES // max(1, sum(b.numel() for b in make(vectors[:1]))))


def _scaled(block: Tensor, c: Tensor) -> Tensor:
    return (block * c.sqrt()[:, None, None]).reshape(-1, block.shape[-1])


def _gram(rows: Tensor) -> Tensor:
    """Return RᵀR, or only its trace where that is too large to decompose."""
    if rows.shape[1] > DENSE_LIMIT:
        return rows.square().sum().reshape(1, 1)
    return rows.mT @ rows


def _each_norm(block: Tensor) -> Tensor:
    n_samples, rows, columns = block.shape
    if min(rows, columns) > 1 and n_samples * min(rows, columns) ** 3 <= _SMALL:
        norms: Tensor = torch.linalg.matrix_norm(block, 2)
        return norms
    return block.flatten(1).square().sum(1).sqrt()


def _largest_eigenvalue(gram: Tensor) -> float:
    if len(gram) > DENSE_LIMIT:
        return float(torch.trace(gram))
    return max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0)
