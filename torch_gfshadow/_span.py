"""A step as a sum of vectors that are there anyway, with weights of its own for every parameter.

A step of SGD with weight decay is a sum of gradient and parameters, one with momentum a multiple
of the optimizer's own velocity, Nesterov's a sum of all three. Nothing of the size of the
parameters need then be kept to know where it went.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from torch_gfshadow._blocks import blocks, widened

Vector = Sequence[Tensor]
"""A vector in one piece, or one tensor for each parameter."""
_SINGULAR = 1e-10


def weights_of(
    ends: tuple[Vector, Vector], others: Sequence[Vector], sizes: Sequence[int], allowed: float
) -> tuple[Tensor, Tensor] | None:
    """Write the way from one point to another as a sum of ``others``.

    Args:
        ends: Where it ends, and where it began.
        others: Vectors to take for it.
        sizes: Entries of each parameter.
        allowed: Norm of what may be left over.

    Returns:
        The weights, shape ``[parameters, len(others)]``, and the inner products of that sum with
        each of ``others``; ``None`` where more is left over.
    """
    n = len(others) + 1
    grams = torch.zeros(len(sizes), n, n, dtype=torch.float64, device="cpu")
    for i, rows in _rows([*ends, *others], sizes):
        rows[1] = rows[0] - rows[1]
        grams[i] += (rows[1:] @ rows[1:].T).cpu()
    inner, right = grams[:, 1:, 1:], grams[:, 1:, :1]
    size = inner.diagonal(dim1=1, dim2=2).sqrt()[:, :, None]
    size = torch.where(size > 0.0, size, 1.0)
    scaled = inner / (size * size.mT)
    if not bool(scaled.isfinite().all() and right.isfinite().all()):
        return None
    inverse = torch.linalg.pinv(scaled, rtol=_SINGULAR, hermitian=True)
    weights = (inverse @ (right / size)) / size
    left = grams[:, 0, 0].sum() - (weights * (2.0 * right - inner @ weights)).sum()
    if not math.sqrt(max(float(left), 0.0)) <= allowed:
        return None
    return weights[:, :, 0], (inner @ weights).sum(0)[:, 0]


def dot_of_sum(
    vector: Vector, weights: Tensor, others: Sequence[Vector], sizes: Sequence[int]
) -> float:
    """Return the inner product of ``vector`` with the sum of ``others``."""
    total = 0.0
    for i, rows in _rows([vector, *others], sizes):
        total += float((rows[1:] @ rows[0]).cpu() @ weights[i])
    return total


def _rows(vectors: Sequence[Vector], sizes: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield a parameter's number and a block of it, one float64 row for each vector."""
    cut = [v if len(v) == len(sizes) else torch.split(v[0], list(sizes)) for v in vectors]
    for i, size in enumerate(sizes):
        flats = [parts[i].detach().reshape(-1) for parts in cut]
        for at in blocks(size):
            device = flats[0].device
            yield i, torch.stack([widened(flat[at].to(device)) for flat in flats])
