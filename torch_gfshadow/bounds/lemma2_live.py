"""Lemma 2 along a run: λ_min of a deep linear network from below, certified at every probe.

Statement and tightenings are in lemma2.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from torch_gfshadow.bounds._chain import Chain
from torch_gfshadow.bounds._deep_linear import Point
from torch_gfshadow.bounds._floors import Floor
from torch_gfshadow.bounds._inputs import Matrix
from torch_gfshadow.bounds._norms import frobenius
from torch_gfshadow.bounds.base import Assumption
from torch_gfshadow.bounds.lemma2 import LambdaMinBounds, lambda_min_bounds
from torch_gfshadow.errors import must
from torch_gfshadow.network import NetworkPoint

_FORMS = ("eq13", "spectral", "C_norms", "C_blocks")


class Lemma2(Floor):
    """λ_min of a deep linear network along a run, from below.

    Args:
        form: ``"C_blocks"`` (the tightest), ``"C_norms"``, ``"spectral"`` or the
            printed ``"eq13"``.
        quiet: Give no value, instead of one that says why, on a network with activations.

    Raises:
        ValueError: If ``form`` is none of these.
    """

    name = "lemma2"

    def __init__(self, form: str = "C_blocks", *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        if form not in _FORMS:
            fix = "Leave it out for the tightest."
            raise ValueError(must("form", f"one of {', '.join(_FORMS)}", repr(form), fix))
        self.form = form

    def is_other(self, network: NetworkPoint) -> str:
        """Refuse activations, pools and shared weights, and a single layer."""
        if network.depth < 2:
            return "One layer: f is convex and λ_min ≥ 0."
        if network.gradient is None:
            return "The network is not linear; ask for the bound nonlinear or convolution."
        return ""

    def floor(self, network: NetworkPoint) -> float:
        """Return the bound of :func:`~torch_gfshadow.bounds.lemma2.lemma2`."""
        return float(getattr(bounds_at(network), self.form))

    def assumptions(self, network: NetworkPoint) -> tuple[Assumption, ...]:
        """Return linearity and convexity, both derived from what the model calls."""
        loss = ", ".join(sorted(network.loss)) or "piecewise linear"
        return (
            Assumption(
                "f = φ(W_n ⋯ W_1)", f"held: {network.depth} bias-free linear layers", certain=True
            ),
            Assumption(
                "φ convex", f"held: derived from the functions it is made of ({loss})", certain=True
            ),
        )


def bounds_at(network: NetworkPoint) -> LambdaMinBounds:
    """Return all four bounds of a deep linear network."""
    matrices = network.matrices()
    assert matrices is not None
    assert network.gradient is not None
    weights = [w.cpu().numpy() for w in matrices]
    rounding = 1e-11 * network.signal + network.signal_error
    loss = _Known(network.gradient.cpu().numpy(), rounding)
    return lambda_min_bounds(Point(Chain(weights), loss))


@dataclass(frozen=True, eq=False)
class _Known:
    """A loss of which only ∇φ at one W is known, and a bound on its rounding.

    The gradient is a sum over samples of products of norms Σ ‖p_i‖‖x_i‖ in all, in float64.
    """

    known: Matrix
    rounding: float
    smoothness: float = np.inf
    third: float = np.inf

    @property
    def shape(self) -> tuple[int, int]:
        return self.known.shape[0], self.known.shape[1]

    def gradient(self, end: Matrix) -> Matrix:
        return self.known

    def gradient_error(self, end_norm: Any, end_error: Any) -> Any:
        return self.rounding + 1e-11 * frobenius(self.known)

    def value(self, end: Matrix) -> Any:
        raise NotImplementedError

    def curvature(self, end: Matrix, direction: Matrix) -> Any:
        raise NotImplementedError

    def hessian(self, end: Matrix) -> Matrix:
        raise NotImplementedError
