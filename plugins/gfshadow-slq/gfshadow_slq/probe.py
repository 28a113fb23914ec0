"""The probe: nodes and weights of the Hessian's spectral density."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from gfshadow_slq.lanczos import gauss_quadrature
from torch_gfshadow.errors import CurvatureError, must
from torch_gfshadow.probes import Point


class SLQ:
    """The density φ(λ) = (1/d) Σ_i δ(λ − λ_i) of the Hessian's eigenvalues, as a quadrature.

    For n random unit vectors, m Lanczos steps each give m nodes and weights; their mean is an
    unbiased estimate of the moments ∫ λ^p φ(λ) dλ up to p = 2m − 1. It costs n·m Hessian
    products, and m vectors of memory. The vectors are the same at every step of the run.

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
        if every is not None and every < 1:
            fix = "Pass None to measure whenever probes are due."
            raise ValueError(must("every", "at least 1", every, fix))
        self.steps, self.vectors, self.seed, self.every = int(steps), vectors, seed, every

    def measure(self, point: Point) -> Mapping[str, Any]:
        """Return ``nodes`` (ascending), ``weights`` (sum 1), ``mean`` and ``second_moment``.

        Raises:
            CurvatureError: If a Hessian product is not finite.
        """
        layout = point.objective.layout
        dtype = torch.promote_types(layout.dtype, torch.float32)
        generator = torch.Generator("cpu").manual_seed(self.seed)
        pairs: list[tuple[float, float]] = []
        for _ in range(self.vectors):
            vector = torch.randn(layout.dim, generator=generator, dtype=torch.float64, device="cpu")
            start = (vector / vector.norm()).to(layout.device).to(dtype)
            nodes, weights = gauss_quadrature(
                lambda v: point.hessian(v).to(dtype), start, self.steps
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
