"""The gradient's norm at the iterate itself (the record's ``grad_norm`` is one step older)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from torch_gfshadow.errors import CurvatureError, must
from torch_gfshadow.probes.base import Point, checked_every


class GradientNorm:
    """‖∇f(θ_k)‖₂, for the extras; one gradient, or none where the Hessian was needed anyway.

    Args:
        every: Measure only at multiples of this step.

    Raises:
        ValueError: If ``every`` is smaller than 1.
    """

    name = "gradient_norm"

    def __init__(self, every: int | None = None) -> None:
        self.every = checked_every(every)

    def measure(self, point: Point) -> Mapping[str, Any]:
        """Return the norm as ``value``.

        Raises:
            CurvatureError: If the gradient is not finite.
        """
        norm = float(torch.linalg.vector_norm(point.grad))
        if not math.isfinite(norm):
            fix = f"Check the objective at step {point.step}."
            raise CurvatureError(must("gradient", "finite", norm, fix))
        return {"value": norm}
