"""The reference tube: a certified radius around a numerical flow, the shadow itself for example.

Through the nodes y_k of any numerical solution goes the cubic Hermite curve with slopes −∇f(y_k).
For a deep linear network and the square loss its defect Y' + ∇f(Y) is a polynomial of degree
3(2n − 1) in time, so its values at as many Chebyshev points and one more determine it, and the sum
of the norms of its Chebyshev coefficients bounds it everywhere. The tube of ``tube.py`` around this
curve contains the true flow. With ρ_k its radius at t_k, the true discrepancy is certified on both
sides::

    ‖y_k − θ_k‖ − ρ_k ≤ ‖θ(t_k) − θ_k‖ ≤ ‖y_k − θ_k‖ + ρ_k

whatever solver the nodes come from. Derived here. "Certified" covers what ``tube.py`` says, and
the rounding in the evaluation and interpolation of the curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from torch_gfshadow.bounds._ball import Ball, Node
from torch_gfshadow.bounds._chain import Chain, flat, unflat
from torch_gfshadow.bounds._deep_linear import Point
from torch_gfshadow.bounds._inputs import Matrix, like
from torch_gfshadow.bounds._losses import Loss, Square
from torch_gfshadow.bounds._norms import UNIT
from torch_gfshadow.bounds._tube import UP, Carried, TubeStep, curvature, grow
from torch_gfshadow.errors import AssumptionError, must


class ReferenceTube(Carried):
    """A certified radius around the nodes of a numerical gradient flow.

    Args:
        weights: The first node, W_1, …, W_n, n ≥ 2.
        loss: The square loss; no other makes the defect a polynomial.
        mode: As in :class:`~torch_gfshadow.bounds.tube.Tube`.
        start: ‖θ(0) − y_0‖, in θ; 0 where the solution starts at the flow's own start.
        weight_decay: w of the flow of f + (w/2)‖θ‖², in 1/t.

    Attributes:
        time: Time of the last node.
        radius: ρ there: the flow is no farther away. ``inf`` after a breakdown.
        certified_until: The last time at which ``radius`` was finite.
        steps: The pieces so far.

    Raises:
        AssumptionError: If the loss is not the square loss, the weights do not chain, or a number
            is out of range.

    References:
        Derived.
    """

    def __init__(self, weights: Sequence[Any], loss: Loss, **options: Any) -> None:
        if not isinstance(loss, Square):
            fix = "Only there the defect is a polynomial that can be bounded from its values."
            raise AssumptionError(must("loss", "the square loss", type(loss).__name__, fix))
        super().__init__(weights, loss, **options)

    def discrepancy(self, weights: Sequence[Any]) -> tuple[float, float]:
        """Return a lower and an upper limit of ‖θ(t) − θ‖ for the iterate ``weights`` at ``time``.

        Raises:
            AssumptionError: If a shape or a number does not fit.
        """
        theta = flat(like("Ws", weights, self.shapes))
        apart = float(np.linalg.norm(theta - self.node.theta))
        slack = self.radius + apart * theta.size * UNIT
        return max(0.0, apart - slack), apart + slack

    def advance(self, following: Node, h: float) -> TubeStep:
        """Carry the radius over the curve between two nodes."""
        node, decay = self.node, self.weight_decay
        travel, base, misplaced = self._curve(following, h)

        def constants(ball: Ball, radius: float) -> tuple[float, float, float, float]:
            m = curvature(ball, self.mode, travel + radius / 2) - decay
            return m, base + (ball.smoothness + decay) * misplaced, 0.0, 0.0

        guess = self.guess((base, 0.0, 0.0), h)
        return grow(node, self.radius, h, travel, constants, guess, self.time)

    def _curve(self, following: Node, h: float) -> tuple[float, float, float]:
        """Return how far the curve gets from its first node, its defect, and its rounding in θ."""
        node, decay = self.node, self.weight_decay
        degree = 3 * (2 * node.depth - 1)
        u, to_coefficients = _chebyshev(degree)
        u = u[:, None]
        y0, y1 = node.theta, following.theta
        m0, m1 = -node.gradient - decay * y0, -following.gradient - decay * y1
        places = y0 + (3 - 2 * u) * u**2 * (y1 - y0) + h * u * (1 - u) * ((1 - u) * m0 - u * m1)
        velocity = 6 * u * (1 - u) * ((y1 - y0) / h) + (1 - u) * (1 - 3 * u) * m0
        velocity += u * (3 * u - 2) * m1
        point = Point(Chain(unflat(places, node.point.chain.weights)), self.loss)
        defect = velocity + flat(point.gradient()) + decay * places
        speeds = _norms(to_coefficients @ velocity)
        sizes = _norms(to_coefficients @ defect)
        largest = float(_norms(velocity).max())
        position = float(_norms(places).max())
        # what one value may have lost; interpolation multiplies it by at most 2 per coefficient
        lost = float(np.max(point.gradient_error())) + 16 * UNIT * (
            2 * largest + float(_norms([m0, m1]).max()) + decay * position
        )
        lost += 4 * (degree + 1) * UNIT * float(_norms(defect).max())
        travel = h * (float(speeds.sum()) * UP + 2 * (degree + 1) * 32 * UNIT * largest)
        base = float(sizes.sum()) * UP + 2 * (degree + 1) * lost
        misplaced = 2 * (degree + 1) * 16 * UNIT * (position + float(np.linalg.norm(y1)) + travel)
        return travel, base, misplaced


@lru_cache(maxsize=32)
def _chebyshev(degree: int) -> tuple[Matrix, Matrix]:
    """Return degree + 1 Chebyshev points in [0, 1] and the matrix from values to coefficients."""
    size = degree + 1
    angles = (np.arange(size) + 0.5) * math.pi / size
    matrix = 2 / size * np.cos(np.outer(np.arange(size), angles))
    matrix[0] /= 2
    return (np.cos(angles) + 1) / 2, matrix


def _norms(rows: Any) -> Matrix:
    return np.asarray(np.linalg.norm(np.asarray(rows), axis=-1))
