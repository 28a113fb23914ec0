"""Hessian products by central differences: a backend for any model, and referee of the others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._batch import head
from torch_gfshadow._sandbox import Sandbox
from torch_gfshadow._symmetry import padding_rows, without

# Truncation h²·f⁗ and rounding ε/h balance near h ~ ε^(1/3)·‖θ‖ (Nocedal & Wright 2006, §8.1).
# The shorter steps are for kinks: an activation that switches inside [θ−hv, θ+hv] adds its
# whole jump divided by 2h, so only a step that crosses none shows the Hessian. On a ReLU network
# with 1000 samples in float64 the natural step is off by 100 % and the shorter two by 1e-8, 1e-6.
# The longer ones, last, are for models that compute in float32 inside whatever they are cast to
# (a norm or a loss that calls .float()): there the natural step of float64 is all rounding.
_FINE_STEPS = (1.0, 1e-2, 1e-4, 8.0, 64.0)
_SHORTEST = 1e-4
_LADDER = 8.0
_RUNGS = 8
# Rounding at the shortest step is 1e-6 where float64 is what it says.
_CONFIRMED = 1e-4
# In float32, 1/64 leaves 2e-3 of rounding; far shorter steps drown.
_COARSE_STEPS = (1.0, 1 / 16, 1 / 64)
_FINE_TOLERANCE = 1e-3
_COARSE_TOLERANCE = 0.02
# Few samples cross few kinks, and a backend that is wrong is wrong for eight samples.
_N_SAMPLES = 8
_N_DIRECTIONS = 2


def natural_step(theta: Tensor) -> float:
    """Return the length ε^(1/3)·‖θ‖ of the displacement that suits ``theta``'s precision."""
    return float(torch.finfo(theta.dtype).eps ** (1 / 3)) * _size(theta)


def central_difference(
    gradient: Callable[[Tensor], Tensor], theta: Tensor, vector: Tensor, length: float
) -> Tensor:
    """Return (∇f(θ+hv) − ∇f(θ−hv)) / 2h ≈ ∇²f(θ)v with h = ``length`` / ‖v‖; two gradients."""
    norm = float(vector.norm())
    if norm == 0.0:
        return torch.zeros_like(theta)
    h = length / norm
    ahead = gradient(torch.add(theta, vector, alpha=h))
    behind = gradient(torch.add(theta, vector, alpha=-h))
    return (ahead - behind) / (2.0 * h)


@dataclass(frozen=True)
class Step:
    """How to difference a model's gradients: precision, and displacement relative to ‖θ‖.

    ``dtype`` is None for the model's own.
    """

    dtype: torch.dtype | None
    relative: float

    def product(
        self,
        gradient: Callable[[Tensor], Tensor],
        theta: Tensor,
        vector: Tensor,
        scale: float = 1.0,
    ) -> Tensor:
        """Return the central difference quotient along ``vector``."""
        return central_difference(gradient, theta, vector, scale * self.relative * _size(theta))


def choose_step(sandbox: Sandbox, theta: Tensor, batch: Any) -> tuple[Step, int]:
    """Choose how to difference this model; also return how many gradients that took.

    In float64 the displacement can be so short that it meets no kink and rounding is still at
    1e-6, so that is taken wherever it gives the same gradient as the model's own precision (it
    does not where dropout draws other masks), and made longer where the model rounds inside to
    less than float64. Otherwise it tries lengths a factor 4 apart. Both go along the gradient and
    take the length whose quotient the next shorter one changes least: there truncation and
    rounding balance (after Gill, Murray, Saunders & Wright 1983).
    """
    theta = theta.to(sandbox.layout.dtype)
    chunk = [(batch, 1.0)]

    def gradient(point: Tensor) -> Tensor:
        return sandbox.gradient(point, chunk)[1]

    direction = gradient(theta)
    n_grads = 1
    try:
        point = theta.double()
        fine = sandbox.gradient(point, chunk, torch.float64)[1]
        n_grads += 1
        if float((fine - direction).norm()) <= 1e-2 * float(fine.norm()):
            relative, more = _in_float64(
                lambda at: sandbox.gradient(at, chunk, torch.float64)[1], point, fine
            )
            return Step(torch.float64, relative), n_grads + more
    except Exception:
        pass
    # The gradient leans towards the sharp directions, which need the shortest step.
    lengths = [natural_step(theta) * 4.0**-i for i in range(5)]
    quotients = [central_difference(gradient, theta, _nonzero(direction), n) for n in lengths]
    changes = [float((a - b).norm()) for a, b in itertools.pairwise(quotients)]
    best = min(range(len(changes)), key=lambda i: changes[i])
    return Step(None, lengths[best] / _size(theta)), n_grads + 2 * len(lengths)


def _in_float64(
    gradient: Callable[[Tensor], Tensor], theta: Tensor, direction: Tensor
) -> tuple[float, int]:
    """Return the relative displacement, and the gradients that finding it took."""
    shortest = natural_step(theta) * _SHORTEST
    direction = _nonzero(direction)
    best, least, before = shortest, math.inf, None
    for rung in range(_RUNGS):
        length = shortest * _LADDER**rung
        quotient = central_difference(gradient, theta, direction, length)
        if before is not None:
            change = float((quotient - before).norm())
            if rung == 1 and change <= _CONFIRMED * float(quotient.norm()):
                return shortest / _size(theta), 4
            if change < least:
                best, least = length, change
        before = quotient
    return best / _size(theta), 2 * _RUNGS


def _nonzero(direction: Tensor) -> Tensor:
    return direction if bool(direction.any()) else torch.ones_like(direction)


class Referee:
    """Judges Hessian products of a few samples by central differences in random directions.

    In float64 wherever model and batch can be cast, because there the difference is known to
    seven digits; else in the model's own precision, with the tolerance that leaves.

    Attributes:
        batch: The samples it judges on.
        dtype: The precision it judges in; None for the model's own.
        theta: The point, in that precision.
        directions: Unit vectors in that precision.
        still: Rows of the flat vector whose gradient the model's backward pass leaves out. The
            flow never moves them, so they take no part in the Hessian of what it moves.
        tolerance: Largest relative error that is still agreement.
    """

    def __init__(self, sandbox: Sandbox, theta: Tensor, batch: Any) -> None:
        self._sandbox = sandbox
        self.batch, self.dtype, grad = self._setting(theta, batch)
        self.theta = theta.to(self.dtype or sandbox.layout.dtype)
        fine = self.theta.dtype == torch.float64
        self.tolerance = _FINE_TOLERANCE if fine else _COARSE_TOLERANCE
        steps = _FINE_STEPS if fine else _COARSE_STEPS
        self._lengths = [natural_step(self.theta) * step for step in steps]
        # What rounding makes of a quotient at the natural step.
        eps = torch.finfo(self.theta.dtype).eps
        self._noise = 10.0 * eps * float(grad.norm()) / self._lengths[0]
        generator = torch.Generator().manual_seed(0)
        self.directions = []
        for _ in range(_N_DIRECTIONS):
            vector = torch.randn(theta.numel(), generator=generator, device=generator.device).to(
                self.theta
            )
            self.directions.append(vector / vector.norm())
        self.still = self._resting()
        self.directions = [without(vector, self.still) for vector in self.directions]
        self._known: dict[tuple[int, int], Tensor] = {}

    def disagreement(self, products: list[Tensor]) -> float:
        """Return the largest relative error of ``products``, one per direction, in order."""
        return max(self._error(i, product) for i, product in enumerate(products))

    def _error(self, direction: int, product: Tensor) -> float:
        best = float("inf")
        for j in range(len(self._lengths)):
            reference = self._difference(direction, j)
            scale = max(float(product.norm()), float(reference.norm()))
            if j == 0 and scale <= self._noise:
                return 0.0  # no curvature along this direction, both agree
            error = float((product - reference).norm()) / scale
            # `<`, not min(): a NaN must lose.
            best = error if error < best else best
            if best <= self.tolerance:
                break
        return best

    def _difference(self, direction: int, j: int) -> Tensor:
        if (direction, j) not in self._known:
            vector, length = self.directions[direction], self._lengths[j]
            quotient = central_difference(self.gradient, self.theta, vector, length)
            self._known[direction, j] = quotient
        return self._known[direction, j]

    def _resting(self) -> list[tuple[int, int]]:
        """Return the padding rows that get no gradient by another use either."""
        rows = padding_rows(self._sandbox.model, self._sandbox.layout)
        if not rows:
            return []
        aside = 0.01 * _size(self.theta) * self.directions[0]
        gradient = self.gradient(self.theta + aside)
        return [(start, end) for start, end in rows if not bool(gradient[start:end].any())]

    def gradient(self, theta: Tensor) -> Tensor:
        """Return the gradient of the samples judged on, in the precision of the judgement."""
        return self._sandbox.gradient(theta, [(self.batch, 1.0)], self.dtype)[1]

    def _setting(self, theta: Tensor, batch: Any) -> tuple[Any, torch.dtype | None, Tensor]:
        """Return the first (samples, precision) the model can be evaluated with."""
        for samples in (head(batch, _N_SAMPLES), batch):
            for dtype in (torch.float64, None):
                try:
                    point = theta.to(dtype or self._sandbox.layout.dtype)
                    grad = self._sandbox.gradient(point, [(samples, 1.0)], dtype)[1]
                except Exception:
                    if samples is batch and dtype is None:
                        raise
                    continue
                if bool(grad.isfinite().all()):
                    return samples, dtype, grad
        return batch, None, grad


def _size(theta: Tensor) -> float:
    return float(theta.norm()) or 1.0
