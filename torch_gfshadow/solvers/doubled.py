"""Two Runge–Kutta solutions of one order, one with twice the step: for flows with memory.

Velocities and running means turn the spectrum of a gradient flow complex. A stabilised method is
stable on the negative real axis alone, and an error that is carried along by one grows without
reason. So two solutions are carried: a fine one, which is the shadow, and a coarse one that takes
one step for two of it, half as much again in cost. Their distance is the error bar. It sees all
that happens to an error, growth, decay and rotation, and nothing about it is linearised: (2^p − 1)
times the error of the fine solution at order p. At order three that is seven times, and no less
than the error itself where the field is so rough that the order falls to one. At order five, for
fields known to be smooth, it is 31 times, and an eighth of the distance is the bar.

Source: the formulas of Bogacki & Shampine, Appl. Math. Lett. 2 (1989), and of Dormand & Prince, J.
Comp. Appl. Math. 6 (1980); step doubling, Hairer, Nørsett & Wanner, Solving Ordinary Differential
Equations I, II.4, on the global error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_gfshadow.solvers.base import (
    Field,
    Node,
    SolverConfig,
    Stepper,
    check_saved,
    hermite,
    load_plain,
    save_plain,
)

_SAFETY, _GROW, _SHRINK = 0.9, 3.0, 0.2
_SHARE = 0.3
"""Share of what is left of the error allowance for one pair of steps."""
_LEAP, _SLACK = 2.0, 4.0
"""What the distance may grow by in a pair: more, and the coarse solution is not stable."""


class _Formula(NamedTuple):
    """An explicit method whose last row is its weights, so that the next step knows its slope."""

    order: int
    rows: tuple[tuple[float, ...], ...]
    embedded: tuple[float, ...]
    stability: float
    share: float
    """Error bar over the distance of the two solutions."""


_THIRD = _Formula(
    3,
    ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    2.51,
    1.0,
)
_FIFTH = _Formula(
    5,
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    3.31,
    0.125,
)
_PLAIN = ("next_step", "ungraded", "_gap", "_earlier", "_origin")
_NODES = ("left", "middle", "right", "coarse")


class DoubledStepper:
    """Two steps of a fine solution beside one of a coarse solution.

    Attributes:
        left: Where the fine solution was before the last pair of steps; ``middle`` between them.
        coarse: The coarse solution, at the time of ``right``.
        local_error: What the last pair added to the distance of the two solutions.
        next_step: Length of the next pair.
    """

    rough = False
    stiffness: float | None = None
    ungraded = 0.0

    def __init__(
        self, field: Field, node: Node, first_step: float, *, smooth: bool, prefix: str = ""
    ) -> None:
        self._formula = _FIFTH if smooth else _THIRD
        self.order, self.stability = self._formula.order, self._formula.stability
        self.name = f"{prefix}rk{self.order}"
        self.left = self.middle = self.right = self.coarse = node
        self.local_error: Tensor | None = None
        self.next_step = first_step
        self._field, self._origin = field, node.time
        self._gap = self._earlier = 0.0

    @property
    def error(self) -> float:
        """Error bar within the last pair of steps: a share of the distance of the two solutions."""
        return max(self._gap, self._earlier)

    def inherit(self, error: Tensor) -> None:
        """Take over an error of the solution so far: the coarse one is moved away by it."""
        away = self.coarse.shifted(error, -1.0 / self._formula.share)
        self.coarse = Node(self.coarse.time, away, self.coarse.field)
        self._gap = self._bar(self.right.state - away)

    def shift(self, offset: Tensor) -> None:
        """Move both solutions; their slopes are left to :meth:`refresh`."""
        coarse = self.coarse
        self.right = Node(self.right.time, self.right.state + offset, self.right.field)
        self.coarse = Node(coarse.time, coarse.state + offset, coarse.field)

    def refresh(self) -> None:
        """Evaluate the field anew where the two solutions stand: it has changed."""
        coarse = self.coarse is not self.right
        self.right = Node(self.right.time, self.right.state, self._field(self.right.state))
        at = self.coarse
        self.coarse = Node(at.time, at.state, self._field(at.state)) if coarse else self.right

    def step(
        self,
        tolerance: float,
        shortest: float = 0.0,
        longest: float = math.inf,
        lambda_max: float | None = None,
    ) -> bool:
        """Try a pair of steps; ``tolerance`` is what :attr:`error` may come to."""
        h = min(self.next_step, longest)
        # the coarse one first: whoever reads loss and slope of the last evaluation gets ours
        coarse, _ = self._ahead(self.coarse, h)
        middle, first = self._ahead(self.right, 0.5 * h)
        right, second = self._ahead(middle, 0.5 * h)
        apart = right.state - coarse.state
        moved = apart - (self.right.state - self.coarse.state)
        fifth = self.order > 3
        added = _norm(first.add_(second)) if fifth else self._residual(moved, right, coarse)
        gap = self._bar(apart)
        # errors stay where nothing contracts: as much again for every doubling of the time
        elapsed = self.right.time - self._origin
        allowed = _SHARE * max(tolerance - self._gap, tolerance * h / (elapsed + h))
        stable = gap <= _LEAP * self._gap + _SLACK * allowed
        finite = bool(torch.isfinite(right.field).all() & torch.isfinite(coarse.field).all())
        factor = _SHRINK
        if finite and math.isfinite(added):
            exponent = 1.0 / (self.order if fifth else self.order + 1)
            factor = _SAFETY * (allowed / max(added, 1e-300)) ** exponent
            factor = factor if stable else min(factor, 0.5)
        self.next_step = h * min(max(factor, _SHRINK), _GROW)
        if not (finite and stable and added <= allowed):
            self.local_error = None
            return False
        self.local_error = moved
        self.left, self.middle, self.right, self.coarse = self.right, middle, right, coarse
        self._earlier, self._gap = self._gap, gap
        return True

    def _ahead(self, node: Node, h: float) -> tuple[Node, Tensor]:
        """Return the node a step ``h`` further and the embedded estimate of its local error.

        As many evaluations as the formula has rows.
        """
        slopes, state = [node.field], node.state
        for row in self._formula.rows:
            state = _combined(node.state, h, row, slopes)
            slopes.append(self._field(state))
        error = _combined(torch.zeros_like(state), h, self._formula.embedded, slopes)
        return Node(node.time + h, state, slopes[-1]), error

    def _residual(self, moved: Tensor, right: Node, coarse: Node) -> float:
        """Return what the two have moved apart by, less what the flow itself moves them by.

        The distance there is already turns and grows by the difference of the slopes.
        """
        carried = (self.right.field - self.coarse.field).add_(right.field).sub_(coarse.field)
        half = 0.5 * (right.time - self.right.time)
        return self._bar(torch.sub(moved, carried, alpha=half))

    def _bar(self, apart: Tensor) -> float:
        return self._formula.share * _norm(apart)

    def interpolate(self, time: float) -> Tensor:
        """Return the fine solution between nodes: cubic in halves, or a quintic through three."""
        if time >= self.right.time:
            return self.right.state
        if self.order > 3 and self.left.time < self.middle.time:
            return _quintic(self.left, self.middle, self.right, time)
        if time >= self.middle.time:
            return hermite(self.middle, self.right, time)
        return hermite(self.left, self.middle, time)

    def state_dict(self) -> dict[str, Any]:
        """Return both solutions and the step size as tensors and numbers."""
        nodes = {name: getattr(self, name).state_dict() for name in _NODES}
        plain = save_plain(self, _PLAIN)
        return nodes | plain | {"solver": self.name, "local_error": self.local_error}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        check_saved(self.name, saved)
        like, error = self.right.state, saved["local_error"]
        for name in _NODES:
            setattr(self, name, Node.from_state(saved[name], like))
        self.local_error = None if error is None else error.to(like)
        load_plain(self, _PLAIN, saved)


@dataclass(frozen=True, kw_only=True)
class Doubled(SolverConfig):
    """Steps h and 2h side by side: of order five, or three where the field is not smooth."""

    def start(self, field: Field, node: Node, first_step: float) -> Stepper:
        """Return the live pair of solutions."""
        return doubled(field, node, first_step)


def doubled(field: Field, node: Node, first_step: float, prefix: str = "") -> DoubledStepper:
    """Return a live pair of solutions at ``node``, of the order that the field's smoothness pays.

    ``field.smooth`` says so; a field that says nothing is taken to be.
    """
    smooth = bool(getattr(field, "smooth", True)) and not getattr(field, "kinked", False)
    return DoubledStepper(field, node, first_step, smooth=smooth, prefix=prefix)


def _quintic(left: Node, middle: Node, right: Node, time: float) -> Tensor:
    """Return the Hermite interpolant through three nodes at equal distances, error O(h⁶)."""
    h = middle.time - left.time
    x = (time - middle.time) / h
    # on nodes −1, 0, 1: values, then slopes
    weights = (
        x**2 * (x - 1.0) ** 2 * (4.0 + 3.0 * x) / 4.0,
        (x**2 - 1.0) ** 2,
        x**2 * (x + 1.0) ** 2 * (4.0 - 3.0 * x) / 4.0,
    )
    slopes = (
        h * x**2 * (x - 1.0) ** 2 * (x + 1.0) / 4.0,
        h * x * (x**2 - 1.0) ** 2,
        h * x**2 * (x + 1.0) ** 2 * (x - 1.0) / 4.0,
    )
    out = torch.zeros_like(middle.state)
    for node, weight, slope in zip((left, middle, right), weights, slopes, strict=True):
        out.add_(node.state, alpha=weight).add_(node.field, alpha=slope)
    return out


def _combined(start: Tensor, h: float, weights: Sequence[float], slopes: list[Tensor]) -> Tensor:
    out = start.clone()
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            out.add_(slope, alpha=h * weight)
    return out


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))
