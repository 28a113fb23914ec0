"""The largest eigenvalue of the Hessian (sharpness), and where it puts the step size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_gfshadow.probes.base import Point, SpectrumProbe


class LambdaMax(SpectrumProbe):
    """λ_max of ∇²f(θ_k) with its residual, and ``edge`` = η·λ_max (2: edge of stability).

    ``lambda_max`` is a Ritz value: the true eigenvalue is at least that. Whether the tolerance
    was met goes to the extras (``converged``).
    """

    name = "lambda_max"

    def measure(self, point: Point) -> Mapping[str, Any]:
        """Return the eigenvalue, its residual and, after a step, the edge."""
        ends = point.spectrum(self.tol, self.max_products)
        measured = {
            "lambda_max": ends.lambda_max,
            "lambda_max_residual": ends.residual_max,
            "converged": ends.converged,
        }
        if point.step_size:
            measured["edge"] = point.step_size * ends.lambda_max
        return measured
