"""How balanced neighbouring layers are, and whether the flow keeps it so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.conserved import LEVELS, conserved_level, largest, of_level, pairs
from torch_gfshadow.errors import must
from torch_gfshadow.probes.base import Point, checked_every


class Balancedness:
    """Differences of squared weights between neighbouring layers; costs one gradient at most.

    ``full``, ``per_unit`` and ``per_layer`` are the largest such differences at the iterate, in
    units of θ²: max_j ‖W_{j+1}ᵀW_{j+1} − W_jW_jᵀ‖, its largest diagonal entry, its largest
    trace. ``conserves_full`` … say of which of them the rate of change along the gradient flow is
    zero to rounding (of none across normalisation or skip connections); ``rate`` is that of the
    finest such, at its worst, as a share of what it could be. ``change`` is how far that quantity
    has moved since the first measurement, which is what finite steps do to it. ``neighbours``
    counts the pairs of layers; without any there are no other numbers.

    Args:
        tol: Relative rate up to which a quantity counts as conserved; by default 1e-9, and 1e-4
            for parameters in single precision. Text comes from ``"balancedness:1e-6"``.
        every: Measure only at multiples of this step.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Elkabetz & Cohen 2021, Section 4; Du, Hu & Lee 2018, arXiv:1806.00900.
    """

    name = "balancedness"

    def __init__(self, tol: float | str | None = None, every: int | None = None) -> None:
        self.tol = None if tol is None else _positive(tol)
        self.every = checked_every(every)
        self._first: list[Tensor] | None = None

    def measure(self, point: Point) -> Mapping[str, Any]:
        """Return the numbers named above; without two layers that fit, only that."""
        layout = point.objective.layout
        weights = layout.unflatten(point.theta)
        if not pairs(weights):
            return {"neighbours": 0}
        found = pairs(weights, layout.unflatten(point.grad.to(point.theta.dtype)))
        tol = self.tol or (1e-9 if layout.dtype == torch.float64 else 1e-4)
        level = conserved_level(found, tol)
        differences = [pair.difference for pair in found]
        if self._first is None:
            self._first = [d.cpu() for d in differences]
        shown = level or LEVELS[-1]
        change = max(
            float(of_level(now.cpu() - then, shown).abs().max())
            for now, then in zip(differences, self._first, strict=True)
        )
        return {
            **{name: largest(found, name) for name in LEVELS},
            **{
                f"conserves_{name}": all(pair.relative_rate(name) <= tol for pair in found)
                for name in LEVELS
            },
            "rate": max(pair.relative_rate(shown) for pair in found),
            "change": change,
            "neighbours": len(found),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the differences at the first measurement."""
        return {"first": self._first}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from them."""
        self._first = saved["first"]


def _positive(tol: float | str) -> float:
    try:
        number = float(tol)
    except ValueError:
        number = float("nan")
    if not 0.0 < number < float("inf"):
        raise ValueError(must("tol", "positive and finite", repr(tol), "Try 1e-6."))
    return number
