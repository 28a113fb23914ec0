"""How much of the gradient points along the extreme eigenvectors of the Hessian."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from torch_gfshadow.errors import CurvatureError, must
from torch_gfshadow.probes.base import Point, SpectrumProbe


class GradientAlignment(SpectrumProbe):
    """|⟨∇f, v⟩| / ‖∇f‖ for the eigenvectors v of λ_min and λ_max, for the extras.

    Absolute values in [0, 1], since the sign of an eigenvector means nothing.
    """

    name = "gradient_alignment"

    def measure(self, point: Point) -> Mapping[str, Any]:
        """Return the cosines as ``min`` and ``max``.

        Raises:
            CurvatureError: If the gradient is zero or not finite.
        """
        ends = point.spectrum(self.tol, self.max_products)
        gradient = point.grad.to(ends.vector_min.dtype)
        norm = float(torch.linalg.vector_norm(gradient))
        if not 0.0 < norm < math.inf:
            fix = "Its direction is undefined here; nothing is wrong at a stationary point."
            raise CurvatureError(must("gradient", "nonzero and finite", f"norm {norm}", fix))
        low, high = (
            min(1.0, abs(float(torch.dot(vector, gradient))) / norm)
            for vector in (ends.vector_min, ends.vector_max)
        )
        return {"min": low, "max": high}
