"""The stepper: one step of the pair at a time, with its own dense output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gfshadow_tsit5.tableau import ERROR, A, dense_weights
from torch_gfshadow.solvers import Field, Node, SolverConfig, Stepper
from torch_gfshadow.solvers.base import check_saved


class Tsit5Stepper:
    """A live solver. See ``torch_gfshadow.solvers.Stepper`` for what each member means."""

    name, order, rough, ungraded = "tsit5", 5, False, 0.0
    stability, stiffness = 3.5, None

    def __init__(self, field: Field, node: Node, first_step: float) -> None:
        self.left = self.right = node
        self.local_error: Tensor | None = None
        self.next_step = first_step
        self._field = field
        self._slopes: tuple[Tensor, ...] = ()

    def step(
        self,
        tolerance: float,
        shortest: float = 0.0,
        longest: float = math.inf,
        lambda_max: float | None = None,
    ) -> bool:
        """Try one step; its local error's 2-norm is held under ``tolerance``."""
        h, node = min(self.next_step, longest), self.right
        slopes, state = [node.field], node.state
        for weights in A[1:]:
            state = node.state + _combined(weights, slopes, h)
            slopes.append(self._field(state))
        error = _combined(ERROR, slopes, h)
        size = float(torch.linalg.vector_norm(error))
        accepted = size <= tolerance  # also false for NaN
        self.local_error = error if accepted else None
        if accepted:
            self.left, self.right = node, Node(node.time + h, state, slopes[-1])
            self._slopes = tuple(slopes)
        self.next_step = h * _growth(tolerance, size)
        return accepted

    def interpolate(self, time: float) -> Tensor:
        """Return the solution inside the last step, to fourth order."""
        h = self.right.time - self.left.time
        if h == 0.0 or time >= self.right.time:
            return self.right.state
        weights = dense_weights((time - self.left.time) / h)
        return self.left.state + _combined(weights, self._slopes, h)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on."""
        return {
            "solver": self.name,
            "left": self.left.state_dict(),
            "right": self.right.state_dict(),
            "slopes": list(self._slopes),
            "next_step": self.next_step,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        check_saved(self.name, saved)
        like = self.right.state
        self.left = Node.from_state(saved["left"], like)
        self.right = Node.from_state(saved["right"], like)
        self._slopes = tuple(slope.to(like) for slope in saved["slopes"])
        self.next_step = float(saved["next_step"])


@dataclass(frozen=True, kw_only=True)
class Tsit5(SolverConfig):
    """Tsitouras 5(4): for smooth fields; its error constants are smaller than dopri5's.

    References:
        Tsitouras, Comput. Math. Appl. 62 (2011) 770.
    """

    def start(self, field: Field, node: Node, first_step: float) -> Stepper:
        """Return the live pair."""
        return Tsit5Stepper(field, node, first_step)


def _combined(weights: Sequence[float], slopes: Sequence[Tensor], h: float) -> Tensor:
    total = slopes[0] * (h * weights[0])
    for weight, slope in zip(weights[1:], slopes[1:], strict=False):
        total.add_(slope, alpha=h * weight)
    return total


def _growth(tolerance: float, size: float) -> float:
    if not math.isfinite(size):  # the trial left the domain of the field
        return 0.1
    return min(max(0.9 * (tolerance / max(size, 1e-300)) ** 0.2, 0.2), 5.0)
