"""The smallest eigenvalue of the Hessian: how fast neighbouring flows may separate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_gfshadow.probes.base import Point, SpectrumProbe


class LambdaMin(SpectrumProbe):
    """λ_min of ∇²f(θ_k) with its residual.

    ``lambda_min`` is a Ritz value: the true eigenvalue is at most that. To the extras go
    ``lower_bound`` on the true one, its ``failure_probability`` (None: an estimate, after a warm
    start), and whether the tolerance was met (``converged``).
    """

    name = "lambda_min"

    def measure(self, point: Point) -> Mapping[str, Any]:
        """Return the eigenvalue, its residual and its lower bound."""
        ends = point.spectrum(self.tol, self.max_products)
        return {
            "lambda_min": ends.lambda_min,
            "lambda_min_residual": ends.residual_min,
            "lower_bound": ends.lower_bound,
            "failure_probability": ends.failure_probability,
            "converged": ends.converged,
        }
