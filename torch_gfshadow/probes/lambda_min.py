"""The smallest eigenvalue of the Hessian: how fast neighbouring flows may separate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_gfshadow.probes.base import Point, checked_every, checked_solve


class LambdaMin:
    """λ_min of ∇²f(θ_k) with its residual.

    ``lambda_min`` is a Ritz value: the true eigenvalue is at most that. To the extras go
    ``lower_bound`` on the true one, its ``failure_probability`` (None: an estimate, after a warm
    start), and whether the tolerance was met (``converged``).

    Args:
        tol: Relative residual asked for.
        max_products: Largest number of Hessian products per point, for both ends together.
        every: Measure only at multiples of this step.

    Raises:
        ValueError: If an argument is out of range.
    """

    name = "lambda_min"

    def __init__(
        self, tol: float | str = 0.01, max_products: int = 100, every: int | None = None
    ) -> None:
        self.tol, self.max_products = checked_solve(tol, max_products)
        self.every = checked_every(every)

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
