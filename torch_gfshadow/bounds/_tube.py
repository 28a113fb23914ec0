"""What the two tubes share: the search for a ball, and the bookkeeping.

See ``tube.py`` for the theorem.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torch_gfshadow.bounds._ball import Ball, Node
from torch_gfshadow.bounds._chain import Chain
from torch_gfshadow.bounds._deep_linear import Point
from torch_gfshadow.bounds._inputs import layers, like
from torch_gfshadow.bounds._losses import Loss
from torch_gfshadow.bounds._phi import log
from torch_gfshadow.bounds._scalars import choice, not_negative, positive
from torch_gfshadow.bounds._tube_step import tube_step
from torch_gfshadow.bounds.base import Assumption, BoundValue
from torch_gfshadow.bounds.lemma1 import CONVEX, SMOOTH

MODES = ("A", "B", "C")
UP = 1 + 1e-12  # covers the handful of products and sums that no norm covers
_TRIES = 60
_LARGEST = 50.0  # m·h beyond which e^{mh} says that the step is too long, not where the flow is


@dataclass(frozen=True, slots=True)
class TubeStep:
    """One step of a tube, with the constants it was made of.

    Attributes:
        time: t at the end of the step.
        radius: R there; ``inf`` once nothing is certified any more.
        m: Upper limit of −λ_min that was used, in 1/t.
        defect: c0, c1, c2 of the defect c0 + c1 s + c2 s².
        ball: Radius of the ball on which the constants hold.
        tries: How many balls were tried.
    """

    time: float
    radius: float
    m: float
    defect: tuple[float, float, float]
    ball: float
    tries: int


class Carried:
    """A radius carried along a curve, piece by piece, until nothing is certified any more.

    Attributes:
        time: End of the last piece.
        radius: R there: the flow is no farther away. ``inf`` after a breakdown.
        certified_until: The last time at which ``radius`` was finite.
        steps: The pieces so far.
    """

    def __init__(
        self,
        weights: Sequence[Any],
        loss: Loss,
        *,
        mode: str = "C",
        start: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        first = layers("Ws", weights)
        ends = (first[-1].shape[0], first[0].shape[1])
        if ends != tuple(loss.shape):
            like("W_n ⋯ W_1", [np.zeros(ends)], [loss.shape])
        self.mode = choice("mode", mode, MODES)
        self.loss = loss
        self.radius = not_negative("start", start, "It is the distance of the two starts.")
        self.weight_decay = not_negative("weight_decay", weight_decay, "It is a factor of ‖θ‖²/2.")
        self.time = self.certified_until = 0.0
        self.steps: list[TubeStep] = []
        self.shapes = [w.shape for w in first]
        self.node = Node(Point(Chain(first), loss))

    @property
    def status(self) -> str:
        """``"ok"``, or until when the certificate holds."""
        if math.isfinite(self.radius):
            return "ok"
        return f"certified until t = {self.certified_until:.6g}"

    def step(self, weights: Sequence[Any], step_size: float) -> float:
        """Go on to the next point of the curve and return the radius there.

        Args:
            weights: W_1, …, W_n at the next point.
            step_size: How much time lies between the two, positive.

        Returns:
            R at the new point; ``inf`` if nothing is certified from here on.

        Raises:
            AssumptionError: If a shape or a number does not fit.
        """
        h = positive("step_size", step_size, "It is the time between two points of the curve.")
        following = Node(Point(Chain(like("Ws", weights, self.shapes)), self.loss))
        self.time += h
        if math.isfinite(self.radius):
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows ends the tube
                taken = self.advance(following, h)
            self.steps.append(taken)
            self.radius = taken.radius
            if math.isfinite(self.radius):
                self.certified_until = self.time
        self.node = following
        return self.radius

    def state_dict(self) -> dict[str, Any]:
        """Return where the tube is, as plain values; of the steps only the last, which guesses."""
        return {
            "weights": list(self.node.point.chain.weights),
            "time": self.time,
            "radius": self.radius,
            "certified_until": self.certified_until,
            "steps": [dataclasses.asdict(step) for step in self.steps[-1:]],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken, with the same loss and mode."""
        self.node = Node(Point(Chain(like("Ws", saved["weights"], self.shapes)), self.loss))
        self.time, self.radius = saved["time"], saved["radius"]
        self.certified_until = saved["certified_until"]
        self.steps = [TubeStep(**step) for step in saved["steps"]]

    def value(self) -> BoundValue:
        """Return the radius as a bound on the distance, with everything it rests on."""
        measured = Assumption("the defect of the curve", "measured on every piece", certain=True)
        return BoundValue(log(self.radius), (SMOOTH, CONVEX, measured), self.status)

    def advance(self, following: Node, h: float) -> TubeStep:
        """Carry the radius over one piece."""
        raise NotImplementedError

    def guess(self, defect: tuple[float, float, float], h: float) -> float:
        """Guess the next radius: the last piece's curvature, and a little more growth."""
        rate = max(self.steps[-1].m, 0.0) if self.steps else 0.0
        grown = tube_step(self.radius, h, rate, *defect) - self.radius
        return self.radius + 1.05 * max(0.0, grown)


def curvature(ball: Ball, mode: str, distance: float) -> float:
    """Return an upper limit of −λ_min on a ball, or of its mean over a segment in it.

    Args:
        ball: Where it must hold.
        mode: ``"A"``, ``"B"`` or ``"C"``.
        distance: For mode C, the mean distance of the segment's points from the centre.
    """
    if mode == "A":
        return ball.curvature_by_norms
    if mode == "B":
        return ball.curvature_by_blocks
    near = ball.node.negative_curvature + ball.hessian_slope * distance * UP
    return min(near, ball.curvature_by_blocks)


Constants = Callable[[Ball, float], tuple[float, float, float, float]]
"""(ball, largest radius of the tube in it) → m, c0, c1, c2."""


def grow(
    node: Node,
    radius: float,
    h: float,
    travel: float,
    constants: Constants,
    guess: float,
    time: float,
) -> TubeStep:
    """Carry a tube over one piece of its curve.

    The constants must hold on a ball that contains the tube, whose radius they decide: balls are
    tried, larger and larger, until one contains what follows from it.

    Args:
        node: Where the piece begins.
        radius: R there.
        h: Length of the piece.
        travel: How far the curve gets from the node within the piece.
        constants: m and the defect, from a ball and the tube's largest radius in it.
        guess: First guess of that radius.
        time: t at the end of the piece.
    """
    assumed = max(radius, guess)
    m, defect = math.inf, (math.inf, math.inf, math.inf)
    for tries in range(1, _TRIES + 1):
        m, *parts = constants(Ball(node, assumed + travel), assumed)
        defect = (parts[0], parts[1], parts[2])
        if not (m * h <= _LARGEST and math.isfinite(sum(defect))):
            break
        largest = tube_step(radius, h, max(m, 0.0), *defect) * UP
        if largest <= assumed:
            end = min(largest, tube_step(radius, h, m, *defect) * UP)
            return TubeStep(time, end, m, defect, assumed + travel, tries)
        # the fixed point is near where h is small; where it is not, find out fast
        assumed = max(largest * 1.001, assumed * 1.5 if tries > 5 else 0.0)
    return TubeStep(time, math.inf, m, defect, assumed + travel, tries)
