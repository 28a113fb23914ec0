"""Lanczos with full reorthogonalisation: the Gauss quadrature of a symmetric matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gauss_quadrature(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Return nodes λ_i and weights w_i with Σ w_i p(λ_i) = vᵀp(A)v for all polynomials.

    Exact up to degree 2m − 1 after m steps; it ends early where v lies in an invariant subspace.

    Args:
        product: v → Av for a symmetric A.
        start: A unit vector v, shape ``[d]``.
        steps: Number m of products, at most d are made.

    Returns:
        Nodes in ascending order and weights that sum to 1, float64 on the CPU.

    References:
        Golub & Welsch 1969; Ubaru, Chen & Saad 2017, algorithm 2.
    """
    basis = [start]
    alphas: list[float] = []
    betas: list[float] = []
    scale = 0.0
    for _ in range(min(steps, start.numel())):
        image = product(basis[-1]).to(start.dtype)
        alphas.append(float(torch.dot(basis[-1], image)))
        known = torch.stack(basis)
        for _twice in range(2):  # once loses orthogonality as soon as a node has converged
            image = image - known.T @ (known @ image)
        beta = float(torch.linalg.vector_norm(image))
        scale = max(scale, abs(alphas[-1]), beta)
        if beta <= 100 * torch.finfo(start.dtype).eps * scale:
            break
        betas.append(beta)
        basis.append(image / beta)
    size = len(alphas)
    diagonal = torch.tensor(alphas, dtype=torch.float64, device="cpu")
    matrix = torch.diag(diagonal)
    if size > 1:
        beside = torch.tensor(betas[: size - 1], dtype=torch.float64, device="cpu")
        matrix += torch.diag(beside, 1) + torch.diag(beside, -1)
    nodes, vectors = torch.linalg.eigh(matrix)
    return nodes, vectors[0] ** 2
