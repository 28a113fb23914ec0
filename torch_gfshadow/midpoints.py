"""One piece of a flow, crossed by midpoint steps twice: coarsely, and with half the step.

Read next: ``piecewise``, which carries both solutions from piece to piece.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torch_gfshadow.flows.base import position
from torch_gfshadow.shadow import FlowField

EVALS = 4
"""Gradients that one midpoint step of the coarse solution costs, with its two of the fine one."""


class PieceField(FlowField):
    """A field that remembers the last gradient, too."""

    grad: Tensor

    def remember(self, loss: float, state: Tensor, grad: Tensor) -> Tensor:
        """Return F from a gradient that is known."""
        self.grad = grad
        return super().remember(loss, state, grad)

    def midpoint(self, state: Tensor, h: float, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return the point half a step ahead along ``slope``, and the slope of the step there."""
        middle = torch.add(state, slope, alpha=0.5 * h)
        return middle, self.averaged(middle, state) if self.kinked else self(middle)


class Crossing(NamedTuple):
    """Both solutions at the end of a piece; loss, speed and curvature along the fine one."""

    fine: Tensor
    coarse: Tensor
    loss: float
    speed: float
    curvature: float


def crossed(
    field: PieceField, fine: Tensor, coarse: Tensor, span: float, steps: int, slope: Tensor | None
) -> Crossing:
    """Follow ``field`` for the time ``span`` from both solutions.

    Args:
        field: The piece's own.
        fine: Start of the fine solution, which takes ``2·steps`` steps.
        coarse: Start of the coarse one, which takes ``steps``.
        span: Flow time, > 0.
        steps: Each costs :data:`EVALS` evaluations.
        slope: F at the start, if it is known and both start there.
    """
    h = span / steps
    for _ in range(steps):
        # the coarse solution's slope shows the fine one the way, too: what it is off enters by h²
        first = field(coarse) if slope is None else slope
        coarse = torch.add(coarse, field.midpoint(coarse, h, first)[1], alpha=h)
        middle, early = field.midpoint(fine, 0.5 * h, first)
        before = field.grad
        fine = torch.add(fine, early, alpha=0.5 * h)
        middle, late = field.midpoint(fine, 0.5 * h, 2.0 * early - first)
        fine = torch.add(fine, late, alpha=0.5 * h)
        slope = None
    # Taylor's formula from the last midpoint; the gradient turns half as much again until the end
    ahead = position(field.flow, fine - middle).to(field.grad.dtype)
    bent = torch.add(field.grad, field.grad - before, alpha=0.25)
    turned, speed = (
        float(torch.linalg.vector_norm(position(field.flow, slopes)))
        for slopes in (late - early, late)
    )
    curvature = turned / max(0.5 * h * speed, 1e-300)
    return Crossing(fine, coarse, field.loss + float(torch.dot(bent, ahead)), speed, curvature)
