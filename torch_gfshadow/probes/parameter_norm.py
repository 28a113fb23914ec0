"""The size of the parameters: bounds for homogeneous networks are powers of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from torch_gfshadow.probes.base import Point, checked_every


class ParameterNorm:
    """‖θ_k‖₂, for the extras; costs nothing.

    Args:
        every: Measure only at multiples of this step.

    Raises:
        ValueError: If ``every`` is smaller than 1.
    """

    name = "parameter_norm"

    def __init__(self, every: int | None = None) -> None:
        self.every = checked_every(every)

    def measure(self, point: Point) -> Mapping[str, Any]:
        """Return the norm as ``value``."""
        return {"value": float(torch.linalg.vector_norm(point.theta))}
