"""Objectives whose gradient flow is known exactly, with the records of gradient descent on them.

Each is a sum of functions of one variable, so that flow, Hessian and smoothness are known to
rounding; a record holds norms and eigenvalues only, which no rotation of θ would change::

    quadratic  ½hu²          u(t) = u₀e^{−ht}
    cosine     a(1 − cos u)  tan(u(t)/2) = tan(u₀/2)·e^{−at}
    quartic    ¼cu⁴          u(t) = u₀/√(1 + 2cu₀²t)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_gfshadow.record import Record

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """One objective, one starting point, one list of step sizes; everything exact.

    Attributes:
        name: What it is.
        start: θ_0, shape ``[d]``.
        step_sizes: η_0, η_1, …
        smoothness: Smallest β with ‖∇²f‖ ≤ β everywhere; ∞ if there is none.
        curvature_min: Infimum of λ_min(∇²f) over the whole space.
        floor: Infimum of f; −∞ if there is none.
    """

    name: str
    start: Tensor
    step_sizes: Sequence[float]
    smoothness: float
    curvature_min: float
    floor: float
    value: Map = field(repr=False)
    slope: Map = field(repr=False)
    bend: Map = field(repr=False)
    flow: Callable[[float], Tensor] = field(repr=False)

    @property
    def loss_at_start(self) -> float:
        """f(θ_0)."""
        return float(self.value(self.start).sum())

    def records(self) -> Iterator[Record]:
        """Yield the record of every step of gradient descent, from step 0 on.

        Discrepancy, eigenvalues and defects are exact; error bars and residuals are 0.
        """
        u, time, step_size = self.start, 0.0, self.step_sizes[0]
        used: list[Tensor] = []
        for step in range(len(self.step_sizes) + 1):
            if step > 0:
                step_size = self.step_sizes[step - 1]
                used = [*used[-1:], self.slope(u)]
                u, time = u - step_size * used[-1], time + step_size
            yield self._record(step, time, step_size, u, used)

    def _record(
        self, step: int, time: float, step_size: float, u: Tensor, used: list[Tensor]
    ) -> Record:
        exact, bends = self.flow(time), self.bend(u)
        discrepancy, distance = _norm(u - exact), _norm(u - self.start)
        return Record(
            step=step,
            time=time,
            step_size=step_size,
            loss=float(self.value(u).sum()),
            shadow_loss=float(self.value(exact).sum()),
            grad_norm=_norm(used[-1] if used else self.slope(u)),
            distance_from_init=distance,
            discrepancy=discrepancy,
            relative_discrepancy=discrepancy / distance if distance > 0.0 else None,
            solver_error=0.0,
            local_defect=_norm(used[1] - used[0]) if len(used) == 2 else None,
            lambda_min=float(bends.min()),
            lambda_min_residual=0.0,
            lambda_max=float(bends.max()),
            lambda_max_residual=0.0,
            edge=step_size * float(bends.max()),
            audit="match",
            flow="gradient_flow",
            mode="reference",
        )


def quadratic(
    curvatures: Sequence[float], start: Sequence[float], step_sizes: Sequence[float], name: str
) -> ClosedForm:
    """Return f = ½Σ hᵢuᵢ²."""
    h, u0 = _vector(curvatures), _vector(start)
    return ClosedForm(
        name=name,
        start=u0,
        step_sizes=step_sizes,
        smoothness=float(h.abs().max()),
        curvature_min=float(h.min()),
        floor=0.0 if bool((h >= 0).all()) else -math.inf,
        value=lambda u: 0.5 * h * u**2,
        slope=lambda u: h * u,
        bend=lambda u: h.clone(),
        flow=lambda t: u0 * torch.exp(-h * t),
    )


def cosine(
    heights: Sequence[float], start: Sequence[float], step_sizes: Sequence[float], name: str
) -> ClosedForm:
    """Return f = Σ aᵢ(1 − cos uᵢ): smooth, not convex, not negative."""
    a, u0 = _vector(heights), _vector(start)
    return ClosedForm(
        name=name,
        start=u0,
        step_sizes=step_sizes,
        smoothness=float(a.max()),
        curvature_min=-float(a.max()),
        floor=0.0,
        value=lambda u: a * (1.0 - torch.cos(u)),
        slope=lambda u: a * torch.sin(u),
        bend=lambda u: a * torch.cos(u),
        flow=lambda t: 2.0 * torch.atan(torch.tan(u0 / 2.0) * torch.exp(-a * t)),
    )


def quartic(
    factors: Sequence[float], start: Sequence[float], step_sizes: Sequence[float], name: str
) -> ClosedForm:
    """Return f = ¼Σ cᵢuᵢ⁴: convex, with no global smoothness."""
    c, u0 = _vector(factors), _vector(start)
    return ClosedForm(
        name=name,
        start=u0,
        step_sizes=step_sizes,
        smoothness=math.inf,
        curvature_min=0.0,
        floor=0.0,
        value=lambda u: 0.25 * c * u**4,
        slope=lambda u: c * u**3,
        bend=lambda u: 3.0 * c * u**2,
        flow=lambda t: u0 / torch.sqrt(1.0 + 2.0 * c * u0**2 * t),
    )


def closed_forms() -> list[ClosedForm]:
    """Return the cases a bound is tried on: convex, saddles, maxima, schedules, no smoothness."""
    even, falling = [0.1] * 30, [0.2 / (1 + 0.1 * k) for k in range(30)]
    wide = [1.0, -2.0, 0.5, 0.1]
    return [
        quadratic([0.2, 0.7, 1.5, 3.0], wide, even, "convex quadratic"),
        quadratic([0.2, 0.7, 1.5, 3.0], wide, falling, "convex quadratic, falling step size"),
        quadratic([5.0], [1.0], [0.35] * 20, "beyond the step size 1/β"),
        quadratic([1.0, -0.5], [1.0, 1e-3], [0.05] * 60, "saddle"),
        quadratic([-1.0, -0.2], [0.01, 1.0], even, "maximum"),
        quadratic([0.0, 1.0], [2.0, 1.0], even, "flat direction"),
        cosine([1.0], [math.pi - 1e-3], [0.2] * 60, "just off a maximum"),
        cosine([0.5, 2.0, 1.0], [3.0, 0.4, -2.5], even, "cosine in three dimensions"),
        quartic([1.0, 0.3], [1.5, -1.0], falling, "quartic, falling step size"),
        quadratic([1.0, 2.0], [0.0, 0.0], even, "standing still"),
    ]


def _vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))
