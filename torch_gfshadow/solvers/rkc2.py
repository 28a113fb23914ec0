"""RKC2 as a solver: the stages follow the stiffness, the step follows the accuracy.

Explicit pairs must keep h·λ_max under three or so however smooth the solution is. The stages of
Runge–Kutta–Chebyshev buy a real stability interval of 0.65·s², so a step of any length costs only
√(1.5·h·λ_max) evaluations.

The error estimate compares the increment with the trapezoidal rule on the slopes at both ends,
which are known. Sommeijer, Shampine & Verwer (1998, eq. 3.2) scale the difference for long
stability intervals; here it is scaled by the stability polynomial's own cubic term, which makes it
the local error to leading order for any number of stages on linear fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.solvers.base import (
    Field,
    Node,
    check_saved,
    hermite,
    load_plain,
    save_plain,
)
from torch_gfshadow.solvers.rkc import cubic_term, rkc_increment, stages_for
from torch_gfshadow.solvers.spectral import SpectralRadius

MAX_STAGES = 64
"""As many as one step of the run may cost (``max_burst``): h·λ up to 2660."""
_LONGEST = 0.65 * (MAX_STAGES**2 - 1)
_SAFETY, _GROW, _SHRINK, _TREND = 0.8, 5.0, 0.1, 1.25
_PLAIN = ["next_step", "stages", "_last_step", "_last_ratio"]


def predict(left: Node, right: Node, bound: float, tolerance: float) -> tuple[float, float]:
    """Return the step RKC2 could take after ``right``, and its evaluations per unit of time.

    y''' is read off the trapezoidal rule on an accurate step from ``left`` to ``right``.

    Args:
        left: Start of the step.
        right: End of the step.
        bound: Upper estimate of λ_max.
        tolerance: Largest local error.
    """
    h = right.time - left.time
    bend = right.state - left.state
    bend.sub_(left.field, alpha=0.5 * h).sub_(right.field, alpha=0.5 * h)
    third = 12.0 * float(torch.linalg.vector_norm(bend)) / h**3
    step, stages = h, 2
    for _ in range(3):
        share = 1.0 / 6.0 - cubic_term(min(stages, MAX_STAGES))
        step = _SAFETY * math.cbrt(tolerance / max(share * third, 1e-300))
        stages = stages_for(step * bound)
    return step, stages / step


def error_scale(stages: int) -> float:
    """Return the local error over increment minus trapezoidal rule, to leading order."""
    cubic = cubic_term(stages)
    return (1.0 / 6.0 - cubic) / (0.25 - cubic)


def whole(h: float, bound: float, shortest: float) -> tuple[float, int]:
    """Return a step, no longer than ``h``, that makes the most of its stages, and those."""
    stages = stages_for(h * bound)
    fewer = stages - 1
    shorter = 0.65 * (fewer**2 - 1) / bound if stages > 2 else 0.0
    worse = shorter < shortest or fewer * h >= stages * shorter
    return (h, stages) if worse else (shorter, fewer)


class RKC2Stepper:
    """RKC2 with step and stage control.

    Attributes:
        stages: Stages of the last accepted step, each one evaluation.
        spectral: What is known of the field's stiffness.
    """

    name = "rkc2"
    order = 2
    rough = False
    ungraded = 0.0

    def __init__(
        self,
        field: Field,
        node: Node,
        first_step: float,
        left: Node | None = None,
        spectral: SpectralRadius | None = None,
    ) -> None:
        self.left, self.right = left or node, node
        self.local_error: Tensor | None = None
        self.next_step = first_step
        self.stages = 2
        self._trial: tuple[Node, Tensor] | None = None
        self.spectral = spectral or SpectralRadius(field)
        self._field = field
        self._last_step, self._last_ratio = 0.0, 0.0

    @property
    def stability(self) -> float:
        """Real stability interval of the last step."""
        return 0.65 * (self.stages**2 - 1)

    @property
    def stiffness(self) -> float | None:
        """λ_max the stages were chosen for."""
        return self.spectral.bound if self.spectral.radius is not None else None

    def step(
        self,
        tolerance: float,
        shortest: float = 0.0,
        longest: float = math.inf,
        lambda_max: float | None = None,
    ) -> bool:
        """Try one step with the local error's 2-norm under ``tolerance``."""
        node, h = self.right, min(self.next_step, longest)
        self.spectral.hint(lambda_max)
        self.spectral.measure(node)
        bound = self.spectral.bound
        if h * bound > _LONGEST:
            h = _LONGEST / bound
        h, stages = whole(h, bound, shortest)
        ratio = self._attempt(h, stages) / tolerance
        self.spectral.spend(stages)
        if not ratio <= 1.0:
            self._reject()
            self._last_step = 0.0
            factor = _SAFETY / math.cbrt(ratio) if math.isfinite(ratio) else _SHRINK
            self.next_step = h * max(factor, _SHRINK)
            self.spectral.distrust()
            return False
        self._accept(h)
        self.stages = stages
        self.next_step = h * self._growth(h, max(ratio, 1e-12))
        return True

    def _attempt(self, h: float, stages: int) -> float:
        """Take a step on trial; return the norm of its local error."""
        node = self.right
        increment = rkc_increment(self._field, node.state, node.field, h, stages)
        state = node.state + increment
        slope = self._field(state)
        error = increment.sub_(node.field, alpha=0.5 * h).sub_(slope, alpha=0.5 * h)
        error.mul_(error_scale(stages))
        self._trial = Node(node.time + h, state, slope), error
        return float(torch.linalg.vector_norm(error))

    def _accept(self, h: float) -> None:
        assert self._trial is not None
        self.left, (self.right, self.local_error), self._trial = self.right, self._trial, None

    def _reject(self) -> None:
        self.local_error = self._trial = None

    def stages_at(self, h: float) -> int:
        """Return what a step of size ``h`` costs in evaluations."""
        return stages_for(h * self.spectral.bound)

    def interpolate(self, time: float) -> Tensor:
        """Return the cubic Hermite interpolant of the last step."""
        if time >= self.right.time:
            return self.right.state
        return hermite(self.left, self.right, time)

    def state_dict(self) -> dict[str, Any]:
        """Return nodes, step control and spectral estimate as tensors and numbers."""
        return save_plain(self, _PLAIN) | {
            "solver": self.name,
            "left": self.left.state_dict(),
            "right": self.right.state_dict(),
            "local_error": self.local_error,
            "spectral": self.spectral.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        check_saved(self.name, saved)
        like = self.right.state
        load_plain(self, _PLAIN, saved)
        self.left, self.right = (Node.from_state(saved[side], like) for side in ("left", "right"))
        error = saved["local_error"]
        self.local_error = None if error is None else error.to(like)
        self.spectral.load_state_dict(saved["spectral"], like)

    def _growth(self, h: float, ratio: float) -> float:
        """Return next step over this one: predictive control (Watts 1984), as in the source."""
        factor = _SAFETY / math.cbrt(ratio)
        if self._last_step > 0.0:
            trend = h / self._last_step * math.cbrt(self._last_ratio / ratio)
            factor *= min(trend, _TREND)
        elif factor > 1.0 and self._last_ratio > 0.0:
            factor = 1.0  # just after a rejection
        self._last_step, self._last_ratio = h, ratio
        return min(max(factor, _SHRINK), _GROW)
