"""The largest eigenvalue of the Hessian (sharpness), and where it puts the step size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_gfshadow.probes.base import Point, checked_every, checked_solve


class LambdaMax:
    """λ_max of ∇²f(θ_k) with its residual, and ``edge`` = η·λ_max (2: edge of stability).

    ``lambda_max`` is a Ritz value: the true eigenvalue is at least that. Whether the tolerance
    was met goes to the extras (``converged``).

    Args:
        tol: Relative residual asked for.
        max_products: Largest number of Hessian products per point, for both ends together.
        every: Measure only at multiples of this step.

    Raises:
        ValueError: If an argument is out of range.
    """

    name = "lambda_max"

    def __init__(
        self, tol: float | str = 0.01, max_products: int = 100, every: int | None = None
    ) -> None:
        self.tol, self.max_products = checked_solve(tol, max_products)
        self.every = checked_every(every)

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
