"""Hessian products by central differences: a backend for any model, and referee of the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._sandbox import Sandbox

# Truncation h²·f⁗ against rounding ε/h balance at h ~ ε^(1/3), relative to ‖θ‖ (Knoll & Keyes
# 2004, §3.2, for the one-sided ε^(1/2); Nocedal & Wright 2006, §8.1, for the central one).
# The shorter steps are for kinks: every activation that switches inside [θ−hv, θ+hv] adds its
# whole jump / 2h, and only a step short enough to cross none shows the Hessian.
_FINE_STEPS = (1.0, 1e-2, 1e-4)
_COARSE_STEPS = (1.0, 1 / 8, 1 / 64)
# Agreement in float64 is at 1e-7, at a kink-free 1e-10 step at 1e-4; wrong backends differ by
# 1e-2 (batches of dropout masks) to 1.
_FINE_TOLERANCE = 1e-3
_COARSE_TOLERANCE = 0.05
_N_DIRECTIONS = 2


def natural_step(theta: Tensor) -> float:
    """Return the length ε^(1/3)·‖θ‖ of the displacement that suits ``theta``'s precision."""
    return float(torch.finfo(theta.dtype).eps ** (1 / 3) * (theta.norm().item() or 1.0))


def central_difference(
    gradient: Callable[[Tensor], Tensor], theta: Tensor, vector: Tensor, length: float
) -> Tensor:
    """Return (∇f(θ+hv) − ∇f(θ−hv)) / 2h ≈ ∇²f(θ)v with h = ``length`` / ‖v‖; two gradients."""
    norm = float(vector.norm())
    if norm == 0.0:
        return torch.zeros_like(theta)
    h = length / norm
    forward = gradient(torch.add(theta, vector, alpha=h))
    backward = gradient(torch.add(theta, vector, alpha=-h))
    return forward.sub_(backward).div_(2.0 * h)


def calibrated_step(gradient: Callable[[Tensor], Tensor], theta: Tensor, vector: Tensor) -> float:
    """Return the displacement, relative to ‖θ‖, at which the difference quotient is most stable.

    Tries four lengths a factor 4 apart along ``vector`` and takes the one whose quotient the
    next shorter one changes least: there truncation and rounding balance (after Gill, Murray,
    Saunders & Wright 1983). Costs ten gradients, once.
    """
    lengths = [natural_step(theta) * 4.0**-i for i in range(5)]
    quotients = [central_difference(gradient, theta, vector, length) for length in lengths]
    changes = [float((a - b).norm()) for a, b in itertools.pairwise(quotients)]
    best = min(range(len(changes)), key=lambda i: changes[i])
    return lengths[best] / (float(theta.norm()) or 1.0)


class Referee:
    """Judges Hessian products of one batch by central differences in two random directions.

    In float64 wherever model and batch can be cast, because there the difference is known to
    seven digits; else in the model's own precision, with the tolerance that leaves.
    """

    def __init__(self, sandbox: Sandbox, theta: Tensor, batch: Any) -> None:
        self._sandbox, self._batch = sandbox, batch
        self.dtype: torch.dtype | None = torch.float64
        self.n_gradients = 0
        try:
            self.theta = theta.double()
            grad = self._gradient(self.theta)
        except Exception:  # constants of the model's own precision, or a device without float64
            self.dtype = None
            self.theta = theta.to(sandbox.layout.dtype)
            grad = self._gradient(self.theta)
        fine = self.theta.dtype == torch.float64
        self.tolerance = _FINE_TOLERANCE if fine else _COARSE_TOLERANCE
        self._lengths = [
            natural_step(self.theta) * f for f in (_FINE_STEPS if fine else _COARSE_STEPS)
        ]
        # What rounding alone makes of the two gradients of a quotient, before division by h.
        self._noise = 10.0 * torch.finfo(self.theta.dtype).eps * float(grad.norm())
        generator = torch.Generator().manual_seed(0)
        self.directions = []
        for _ in range(_N_DIRECTIONS):
            vector = torch.randn(theta.numel(), generator=generator).to(self.theta)
            self.directions.append(vector / vector.norm())
        self._known: dict[tuple[int, int], tuple[Tensor, float]] = {}

    def disagreement(self, products: list[Tensor]) -> float:
        """Return the largest relative error of ``products``, one per direction, in order."""
        return max(self._error(i, product) for i, product in enumerate(products))

    def _error(self, direction: int, product: Tensor) -> float:
        best = float("inf")
        for j in range(len(self._lengths)):
            reference, noise = self._difference(direction, j)
            scale = max(float(product.norm()), float(reference.norm()))
            gap = max(0.0, float((product - reference).norm()) - noise)
            error = gap / scale if scale > 0.0 else 0.0
            # `<`, not min(): a NaN must lose.
            best = error if error < best else best
            if best <= self.tolerance:
                break
        return best

    def _difference(self, direction: int, j: int) -> tuple[Tensor, float]:
        """Return the quotient and the rounding error to expect in it."""
        if (direction, j) not in self._known:
            vector, length = self.directions[direction], self._lengths[j]
            quotient = central_difference(self._gradient, self.theta, vector, length)
            self._known[direction, j] = quotient, self._noise / length
        return self._known[direction, j]

    def _gradient(self, theta: Tensor) -> Tensor:
        self.n_gradients += 1
        return self._sandbox.gradient(theta, [(self._batch, 1.0)], self.dtype)[1]
