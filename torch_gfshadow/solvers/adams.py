"""Two-step Adams–Bashforth for fields with kinks: one evaluation a step, controlled by the jumps.

Across the kinks of a ReLU or max-pool network the field jumps, every method is first order, and
the error is the sum of many jumps sampled at random phases. What then counts is the spacing of
the evaluations, so the cheapest method is one that evaluates once a step, at points of the
solution itself (predictor points lie on the wrong side of a kink along which the flow slides).

Jumps at rate with variance v per unit time make F a random walk; a step of size h samples it
with an error of variance v·h³/12. So v is what is measured, from second differences of F
averaged over windows (averaging removes the chatter of sliding, which costs no accuracy, and the
difference removes the smooth trend), and h = (12·tol²/v)^{1/3} is the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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

WINDOW = 4
# variance of the second difference of three adjacent WINDOW-means of a unit random walk
_SECOND_DIFFERENCE = 4.25
# measured on ReLU networks: sliding along kinks adds this factor to what independent jumps do
_SLIDING = 1.5
_GROW, _SHRINK = 1.5, 0.5
# attributes that are numbers, saved as they are
_PLAIN = ("ungraded", "next_step", "jump_rate", "_last_step", "_count", "_span", "_cubes")


class AdamsStepper:
    """Variable-step AB2 with the step set by the jump rate of the field."""

    name = "adams2"
    order = 2
    stability = 1.0
    rough = True

    def __init__(
        self, field: Field, node: Node, first_step: float, left: Node | None = None
    ) -> None:
        self.left, self.right = left or node, node
        self.local_error: Tensor | None = None
        self.ungraded = 0.0
        self.next_step = first_step
        self.jump_rate: float | None = None
        self._field = field
        self._previous: Tensor | None = None
        self._last_step = first_step
        self._sum = torch.zeros_like(node.state)
        self._count, self._span = 0, 0.0
        self._means: list[Tensor] = []
        self._cubes = 0.0
        self._signs = torch.Generator().manual_seed(0)

    def step(self, tolerance: float, shortest: float = 0.0, longest: float = float("inf")) -> bool:
        """Take one step; the step after it is sized so that a jump's error meets ``tolerance``.

        A step is rejected only where the field is not finite.
        """
        h, node = min(self.next_step, longest), self.right
        if self._previous is None:  # Heun, to have a second slope
            trial = self._field(node.state + h * node.field)
            state = node.state + (0.5 * h) * (node.field + trial)
        else:
            ratio = 0.5 * h / self._last_step
            state = node.state + (h * (1.0 + ratio)) * node.field
            state.sub_(self._previous, alpha=h * ratio)
        slope = self._field(state)
        if not bool(torch.isfinite(slope).all()):
            self.next_step = h * 0.1
            self.local_error = None
            return False
        self._observe(node.field, h)
        if self.jump_rate is not None:
            self.ungraded = _SLIDING * math.sqrt(self.jump_rate * self._cubes / 12.0)
        else:  # the first windows: half a step at the wrong slope, each step
            turn = float(torch.linalg.vector_norm(slope - node.field))
            self.ungraded = math.hypot(self.ungraded, 0.5 * h * turn)
        self._previous, self._last_step = node.field, h
        self.left, self.right = node, Node(node.time + h, state, slope)
        self._resize(tolerance, shortest, longest)
        return True

    def interpolate(self, time: float) -> Tensor:
        """Return the cubic Hermite interpolant of the last step."""
        return hermite(self.left, self.right, time)

    def state_dict(self) -> dict[str, Any]:
        """Return nodes, step size and the running windows as tensors and numbers."""
        return save_plain(self, _PLAIN) | {
            "solver": self.name,
            "left": self.left.state_dict(),
            "right": self.right.state_dict(),
            "local_error": self.local_error,
            "previous": self._previous,
            "sum": self._sum.clone(),
            "means": list(self._means),
            "signs": self._signs.get_state(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        check_saved(self.name, saved)
        like = self.right.state
        load_plain(self, _PLAIN, saved)
        self.left, self.right = (Node.from_state(saved[side], like) for side in ("left", "right"))
        error, previous = saved["local_error"], saved["previous"]
        self.local_error = None if error is None else error.to(like)
        self._previous = None if previous is None else previous.to(like)
        self._sum = saved["sum"].to(like, copy=True)
        self._means = [m.to(like) for m in saved["means"]]
        self._signs.set_state(saved["signs"].cpu())

    def _observe(self, slope: Tensor, h: float) -> None:
        """Add one evaluation to the running window; close the window when it is full."""
        self.local_error = None
        self._sum.add_(slope, alpha=h)
        self._count += 1
        self._span += h
        self._cubes += h**3
        if self._count < WINDOW:
            return
        self._means = [*self._means[-2:], self._sum / self._span]
        if len(self._means) == 3:
            first, middle, last = self._means
            bend = last - 2.0 * middle + first
            size = float(torch.linalg.vector_norm(bend))
            rate = size**2 * WINDOW / (_SECOND_DIFFERENCE * self._span)
            old = self.jump_rate
            self.jump_rate = rate if old is None else 0.5 * (old + rate)
            if size > 0.0:
                # second differences telescope, jumps do not: independent signs restore that
                sign = 1.0 if torch.rand((), generator=self._signs, device="cpu") < 0.5 else -1.0
                self.local_error = bend * (
                    sign * _SLIDING * math.sqrt(rate * self._cubes / 12.0) / size
                )
        self._sum = torch.zeros_like(self._sum)
        self._count, self._span, self._cubes = 0, 0.0, 0.0

    def _resize(self, tolerance: float, shortest: float, longest: float) -> None:
        h = self._last_step
        wanted = h
        if self.jump_rate is not None:
            wanted = (12.0 * tolerance**2 / max(self.jump_rate, 1e-300)) ** (1.0 / 3.0)
        wanted = min(max(wanted, h * _SHRINK), h * _GROW)
        self.next_step = min(max(wanted, shortest), longest)


@dataclass(frozen=True, kw_only=True)
class Adams2(SolverConfig):
    """Two-step Adams–Bashforth with a jump-rate step control, for fields with kinks."""

    def start(self, field: Field, node: Node, first_step: float) -> Stepper:
        """Return the live method."""
        return AdamsStepper(field, node, first_step)
