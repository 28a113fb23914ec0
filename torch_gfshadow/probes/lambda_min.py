"""The smallest eigenvalue of the Hessian: how fast neighbouring flows may separate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_gfshadow.probes.base import Point, SpectrumProbe


class LambdaMin(SpectrumProbe):
    """λ_min of ∇²f(θ_k): three numbers that say different things, in f/θ².

    - ``lambda_min`` is a Ritz value: the true λ_min is at most that.
    - ``value_minus_residual``: *some* eigenvalue lies within the residual of ``lambda_min``. It
      need not be the smallest, so this is no bound on λ_min.
    - ``lower_bound``: the true λ_min is at least that, except with ``failure_probability`` over
      the random start (van Dorsselaer, Hochstenbach & van der Vorst 2000; sharper than Kuczyński
      & Woźniakowski 1992). Both are None after a warm start, whose vectors are not random: then
      nothing is known from below. A failure probability of 0 means the whole space was searched.

    All but the first, with ``converged`` (was the tolerance met), go to the extras.
    """

    name = "lambda_min"

    def measure(self, point: Point) -> Mapping[str, Any]:
        """Return the eigenvalue, its residual and its lower bound."""
        ends = point.spectrum(self.tol, self.max_products)
        random_start = ends.failure_probability is not None
        return {
            "lambda_min": ends.lambda_min,
            "lambda_min_residual": ends.residual_min,
            "value_minus_residual": ends.lambda_min - ends.residual_min,
            "lower_bound": ends.lower_bound if random_start else None,
            "failure_probability": ends.failure_probability,
            "converged": ends.converged,
        }
