"""Balanced weights of deep linear networks: how to make them, and how far others are from it.

W_1, …, W_n (layer j maps d_{j−1} to d_j) are balanced if W_{j+1}ᵀW_{j+1} = W_jW_jᵀ for every
j < n. The gradient flow of any loss of W_n ⋯ W_1 conserves these differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from torch_gfshadow.errors import AssumptionError, must


def balanced_factors(
    end_to_end: Tensor,
    dims: Sequence[int],
    *,
    turn: bool = False,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Factor a matrix A into balanced W_1, …, W_n with W_n ⋯ W_1 = A (Procedure 1).

    With A = UΣVᵀ, every layer carries Σ^{1/n}; the first has Vᵀ behind it, the last U before it,
    and zeros fill the widths. Widths below min(d_0, d_n) need a matrix of that rank: there the
    paper's zero padding does not fit, and the zero singular values are cut off instead.

    Args:
        end_to_end: A, shape ``[d_n, d_0]``; zeros give zero weights, a saddle.
        dims: d_0, d_1, …, d_n.
        turn: Turn every hidden layer by a random orthogonal matrix, which keeps A and the
            balance. Without it the hidden units beyond the rank are zero.
        generator: Source of randomness; the global one if not given.

    Returns:
        W_1, …, W_n, in the dtype and on the device of A.

    Raises:
        AssumptionError: If there are fewer than two layers, a shape disagrees, A is not finite, or
            its rank exceeds the smallest width.

    References:
        Elkabetz & Cohen 2021, Procedure 1; Arora et al. 2019, arXiv:1810.02281.
    """
    _check(end_to_end, dims)
    n, width = len(dims) - 1, min(dims)
    u, sigma, vt = torch.linalg.svd(end_to_end.detach(), full_matrices=False)
    limit = max(end_to_end.shape) * torch.finfo(sigma.dtype).eps * float(sigma[0])
    rank = int((sigma > limit).sum())
    if rank > width:
        fix = "The product of the layers has at most the rank of the narrowest."
        condition = f"at most min(dims) = {width}"
        raise AssumptionError(must("rank of the end-to-end matrix", condition, rank, fix))
    root = sigma[:width] ** (1.0 / n)
    layers = [end_to_end.new_zeros(rows, columns) for columns, rows in pairwise(dims)]
    for j, layer in enumerate(layers):
        if j == 0:
            layer[:width] = root[:, None] * vt[:width]
        elif j == n - 1:
            layer[:, :width] = u[:, :width] * root
        else:
            layer[:width, :width] = torch.diag(root)
    if turn:
        turns = [_orthogonal(layer.shape[0], layer, generator) for layer in layers[:-1]]
        for j, q in enumerate(turns):
            layers[j] = q @ layers[j]
            layers[j + 1] = layers[j + 1] @ q.T
    return layers


def unbalancedness(layers: Sequence[Tensor]) -> float:
    """Return max_j ‖W_{j+1}ᵀW_{j+1} − W_jW_jᵀ‖ (spectral norm), 0 for balanced weights.

    Args:
        layers: W_1, …, W_n, each a matrix whose shape fits the one before.

    Raises:
        AssumptionError: If there are fewer than two layers.
    """
    if len(layers) < 2:
        fix = "Balance compares neighbouring layers."
        raise AssumptionError(must("depth n", "at least 2", len(layers), fix))
    return max(float(torch.linalg.matrix_norm(d, 2)) for d in differences(layers))


def differences(layers: Sequence[Tensor]) -> list[Tensor]:
    """Return the conserved matrices D_j = W_{j+1}ᵀW_{j+1} − W_jW_jᵀ, j = 1, …, n − 1."""
    return [after.T @ after - before @ before.T for before, after in pairwise(layers)]


def slack(layers: Sequence[Tensor]) -> float:
    """Return by how much max_j ‖W_j‖² can exceed ‖W_n ⋯ W_1‖^{2/n}, from the D_j alone.

    Σ_j of the negative part of λ_min(D_j), plus max_k Σ_{j<k} of the positive part of λ_max(D_j).
    """
    negative, positive, most = 0.0, 0.0, 0.0
    for difference in differences(layers):
        ends = torch.linalg.eigvalsh(difference)
        negative += max(0.0, -float(ends[0]))
        positive += max(0.0, float(ends[-1]))
        most = max(most, positive)
    return negative + most


def nearest_balanced(layers: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    """Return balanced weights near given ones, for one output, and the distance to them.

    With d_n = 1, balanced weights are W_j = a u_j u_{j−1}ᵀ with unit vectors u_j and a ≥ 0.
    Alternating u_j ← (W_j u_{j−1} + W_{j+1}ᵀ u_{j+1})/‖·‖ only brings them nearer. The distance
    ‖θ − θ_s‖ is that of the weights returned, whether or not any are nearer.

    Raises:
        AssumptionError: If W_n has more than one row.
    """
    if layers[-1].shape[0] != 1:
        fix = "Of wider outputs the nearest balanced weights are not known in closed form."
        raise AssumptionError(must("d_n", "1", layers[-1].shape[0], fix))
    vectors = [torch.linalg.svd(layers[0], full_matrices=False)[2][0]]
    for layer in layers:
        vectors.append(_unit(layer @ vectors[-1]))
    best, gap = _rank_one(layers, vectors)
    for _ in range(500):
        for j in range(len(vectors)):
            pull = torch.zeros_like(vectors[j])
            if j > 0:
                pull = pull + layers[j - 1] @ vectors[j - 1]
            if j < len(layers):
                pull = pull + layers[j].T @ vectors[j + 1]
            vectors[j] = _unit(pull)
        found, distance = _rank_one(layers, vectors)
        if not distance < gap * (1.0 - 1e-12):
            break
        best, gap = found, distance
    return best, gap


def _rank_one(layers: Sequence[Tensor], vectors: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    forms = [float(u @ (w @ v)) for w, (v, u) in zip(layers, pairwise(vectors), strict=True)]
    size = math.fsum(forms) / len(forms)
    if size < 0.0:
        vectors = [-vectors[0], *vectors[1:]]
        size = max(0.0, (math.fsum(forms) - 2.0 * forms[0]) / len(forms))
    made = [size * torch.outer(u, v) for v, u in pairwise(vectors)]
    squares = [float((w - b).square().sum()) for w, b in zip(layers, made, strict=True)]
    return made, math.sqrt(math.fsum(squares))


def _unit(vector: Tensor) -> Tensor:
    norm = float(torch.linalg.vector_norm(vector))
    if norm == 0.0:
        first = torch.zeros_like(vector)
        first[0] = 1.0
        return first
    return vector / norm


def _orthogonal(size: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return a random orthogonal matrix, uniform in Haar measure."""
    device = generator.device if generator is not None else "cpu"
    normal = torch.randn(size, size, generator=generator, dtype=like.dtype, device=device)
    normal = normal.to(like.device)
    q, r = torch.linalg.qr(normal)
    turned: Tensor = q * torch.sign(torch.diagonal(r))
    return turned


def _check(end_to_end: Tensor, dims: Sequence[int]) -> None:
    if len(dims) < 3:
        fix = "dims are d_0, d_1, …, d_n: with n = 1 there is nothing to balance."
        raise AssumptionError(must("depth n", "at least 2", max(0, len(dims) - 1), fix))
    if any(d != int(d) or d < 1 for d in dims):
        raise AssumptionError(must("dims", "positive integers", list(dims), "They are widths."))
    shape = (dims[-1], dims[0])
    if end_to_end.ndim != 2 or tuple(end_to_end.shape) != shape:
        got = f"shape {tuple(end_to_end.shape)}"
        fix = "Its rows are the outputs, its columns the inputs."
        raise AssumptionError(must("end-to-end matrix", f"of shape {shape}", got, fix))
    if not bool(torch.isfinite(end_to_end).all()):
        bad = float(end_to_end[~torch.isfinite(end_to_end)][0])
        raise AssumptionError(must("end-to-end matrix", "finite", bad, "Draw another."))


def uniform_radius(
    shape: tuple[int, int],
    radius: float,
    *,
    rank: int | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Draw a Gaussian matrix, scaled to a Frobenius norm uniform in (0, ``radius``].

    Continuous, so that neither 0 nor any given direction has positive probability; a single row
    or column has a uniform direction. Below full rank it is a product of two Gaussian matrices.
    """
    device = generator.device if generator is not None else "cpu"

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=dtype, device=device)

    rows, columns = shape
    if rank is None or rank >= min(shape):
        matrix = normal(rows, columns)
    else:
        matrix = normal(rows, rank) @ normal(rank, columns)
    share = 1.0 - torch.rand((), generator=generator, dtype=dtype, device=device)
    drawn: Tensor = matrix * (radius * share / torch.linalg.matrix_norm(matrix))
    return drawn
