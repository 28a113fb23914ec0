"""The spectral density of the Hessian by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.errors import CurvatureError, must
from torch_gfshadow.probes.base import Point, checked_every


class SLQ:
    """The density φ(λ) = (1/d) Σ_i δ(λ − λ_i) of the Hessian's eigenvalues, as a quadrature.

    For n random unit vectors, m Lanczos steps each give m nodes and weights; their mean is an
    unbiased estimate of the moments ∫ λ^p φ(λ) dλ up to p = 2m − 1. It costs n·m Hessian
    products, and m vectors of memory. The vectors are the same at every step of the run.
    The package gfshadow-slq registers it under the name ``slq`` and draws the densities.

    Args:
        steps: Lanczos steps m, at least 2; a string comes from ``"slq:40"``.
        vectors: Random vectors n, at least 1.
        seed: Of the vectors, drawn from a generator of their own.
        every: Measure only at multiples of this step; ``None`` for every probed step.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Ubaru, Chen & Saad, SIAM J. Matrix Anal. Appl. 38 (2017) 1075; Ghorbani, Krishnan & Xiao,
        ICML 2019, arXiv:1901.10159.
    """

    name = "slq"

    def __init__(
        self, steps: int | str = 30, vectors: int = 2, seed: int = 0, every: int | None = None
    ) -> None:
        if not str(steps).strip().isdecimal() or int(steps) < 2:
            fix = "30 resolves the bulk and finds the outliers."
            raise ValueError(must("steps", "an integer of at least 2", repr(steps), fix))
        if vectors < 1:
            raise ValueError(must("vectors", "at least 1", vectors, "Two or three are enough."))
        self.steps, self.vectors, self.seed = int(steps), vectors, seed
        self.every = checked_every(every)

    def measure(self, point: Point) -> Mapping[str, Any]:
        """Return ``nodes`` (ascending), ``weights`` (sum 1), ``mean`` and ``second_moment``.

        Raises:
            CurvatureError: If a Hessian product is not finite, or the gradient not that of a
                function.
        """
        layout = point.objective.layout
        dtype = torch.promote_types(layout.dtype, torch.float32)
        generator = torch.Generator("cpu").manual_seed(self.seed)
        pairs: list[tuple[float, float]] = []
        for _ in range(self.vectors):
            vector = torch.randn(layout.dim, generator=generator, dtype=torch.float64, device="cpu")
            start = (vector / vector.norm()).to(layout.device).to(dtype)
            nodes, weights = gauss_quadrature(
                lambda v: point.hessian.eigen(v).to(dtype), start, self.steps
            )
            pairs += zip(nodes.tolist(), (weights / self.vectors).tolist(), strict=True)
        pairs.sort()
        if not all(math.isfinite(node) for node, _ in pairs):
            fix = f"Check that the objective is twice differentiable at step {point.step}."
            raise CurvatureError(must("Hessian products", "finite", "NaN or ∞", fix))
        return {
            "nodes": [node for node, _ in pairs],
            "weights": [weight for _, weight in pairs],
            "mean": math.fsum(w * x for x, w in pairs),
            "second_moment": math.fsum(w * x * x for x, w in pairs),
        }


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
