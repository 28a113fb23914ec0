"""solver="auto": an embedded pair where the field is smooth, Adams–Bashforth where it has kinks.

A pair's error controller trusts the order of its method. Across kinks every method is first
order, the controller shrinks the step again and again, and the evaluations buy nothing. So when
rejections pile up, the field is asked directly whether it is rough, and if it is, the solver
changes where it stands, without losing the solution or its error bar.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torch_gfshadow.solvers.adams import AdamsStepper
from torch_gfshadow.solvers.base import (
    AveragingField,
    Field,
    Node,
    SelfGrading,
    SolverConfig,
    Stepper,
    check_saved,
)
from torch_gfshadow.solvers.embedded import Bosh3
from torch_gfshadow.solvers.roughness import is_rough

_WINDOW, _REJECTIONS = 12, 4


class AutoStepper:
    """Delegates to the solver in use; ``name`` says which it is."""

    def __init__(self, config: SolverConfig, field: Field, node: Node, first_step: float) -> None:
        self._field = field
        self._inner = config.start(field, node, first_step)
        self._first_step = first_step
        self._outcomes: deque[bool] = deque(maxlen=_WINDOW)
        self._patience = 0
        self._suspected = isinstance(field, AveragingField) and field.kinked

    @property
    def name(self) -> str:
        """Name of the solver in use."""
        return f"auto:{self._inner.name}"

    @property
    def order(self) -> int:
        """Order of the solver in use."""
        return self._inner.order

    @property
    def rough(self) -> bool:
        """Whether the field was found to have kinks."""
        return self._inner.rough

    @property
    def stability(self) -> float:
        """Real stability interval of the solver in use."""
        return self._inner.stability

    @property
    def left(self) -> Node:
        """Start of the last step."""
        return self._inner.left

    @property
    def right(self) -> Node:
        """End of the last step."""
        return self._inner.right

    @property
    def local_error(self) -> Tensor | None:
        """Local error of the last step."""
        return self._inner.local_error

    @property
    def ungraded(self) -> float:
        """Error of recent steps still to come."""
        return self._inner.ungraded

    @property
    def next_step(self) -> float:
        """Size of the next attempt."""
        return self._inner.next_step

    @property
    def error(self) -> float | None:
        """Error bar of the solver in use, if it has its own."""
        return self._inner.error if isinstance(self._inner, SelfGrading) else None

    def inherit(self, error: Tensor) -> None:
        """Hand an error bar to the solver in use."""
        if isinstance(self._inner, SelfGrading):
            self._inner.inherit(error)

    def step(self, tolerance: float, shortest: float = 0.0, longest: float = float("inf")) -> bool:
        """Try one step; between steps, reconsider the solver."""
        if self._suspected:  # there are kinks: do they matter on this scale?
            self._suspected = False
            self._reconsider(4.0 * self._inner.next_step)
        accepted = self._inner.step(tolerance, shortest, longest)
        if not self._inner.rough:
            self._outcomes.append(accepted)
            self._patience -= 1
            if not accepted and self._patience <= 0 and self._rejections >= _REJECTIONS:
                self._reconsider(shortest)
        return accepted

    def interpolate(self, time: float) -> Tensor:
        """Return the solution inside the last step."""
        return self._inner.interpolate(time)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the solver in use, and what the choice depends on."""
        return {
            "solver": "auto",
            "right": self.right.state_dict(),
            "inner": self._inner.state_dict(),
            "rough": self.rough,
            "outcomes": list(self._outcomes),
            "patience": self._patience,
            "suspected": self._suspected,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state, with the solver that was in use."""
        check_saved("auto", saved)
        if saved["rough"] and not self.rough:
            self._inner = AdamsStepper(self._field, self.right, 1.0)
        self._inner.load_state_dict(saved["inner"])
        self._outcomes = deque(saved["outcomes"], maxlen=_WINDOW)
        self._patience, self._suspected = saved["patience"], saved["suspected"]

    @property
    def _rejections(self) -> int:
        return self._outcomes.count(False)

    def _reconsider(self, shortest: float) -> None:
        here = self._inner.right
        spacing = max(self._inner.next_step / 4.0, shortest / 4.0)
        if is_rough(self._field, here, spacing):
            first = max(self._inner.next_step, shortest)
            self._inner = AdamsStepper(self._field, here, first, left=self._inner.left)
        else:
            self._outcomes.clear()
            self._patience = 10 * _WINDOW


@dataclass(frozen=True, kw_only=True)
class Auto(SolverConfig):
    """Bogacki–Shampine 3(2) on smooth fields, two-step Adams–Bashforth across kinks."""

    def start(self, field: Field, node: Node, first_step: float) -> Stepper:
        """Return the live solver."""
        return AutoStepper(Bosh3(dtype=self.dtype), field, node, first_step)
