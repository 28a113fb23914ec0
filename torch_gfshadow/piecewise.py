"""PiecewiseFlow: one field after another, each for the length of one step of the run.

The same-batch flow of a minibatch loop is made of it: during step k the shadow follows the flow
of that step's own loss. No solver can run ahead here, so every piece is crossed by a method of a
single step. Two solutions are carried from piece to piece: a coarse one takes midpoint steps, and
a fine one, the shadow, takes two of half the length for each. Their distance is the error bar. Both
see all that happens to an error, growth and decay, curvature, kinks, rounding, and nothing about
it is linearised or fitted. On smooth fields the fine solution is three times closer to the flow,
or more. Where the model has kinks, the midpoint slopes are averaged over the step (see ``_kinks``).

Source: step doubling, Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, II.4,
applied to the global error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._plain import load_attributes, saved_attributes
from torch_gfshadow.errors import OverBudgetError
from torch_gfshadow.flows.base import Flow
from torch_gfshadow.midpoints import EVALS, Crossing, PieceField, crossed
from torch_gfshadow.objective import Objective
from torch_gfshadow.solvers import SolverConfig
from torch_gfshadow.solvers.base import Node
from torch_gfshadow.status import Status

_SAFETY = 2.0
"""The bar over the distance where the field has kinks, or the root of a running mean in it (RMSprop
and Adam). The two solutions are then between first and second order, or now and then take a kink
alike: measured by ``benchmarks/calibration_batch.py``."""
_KINK_RESOLUTION, _KINK_MOST = 0.2, 5
"""What is asked for, and spent at most, across kinks unless ``resolution`` says otherwise."""
_THRIFTY = 0.5
"""What is asked for where a budget pays: one more number is worth more than one more digit."""
_AIM, _WASTE = 0.8, 0.9
"""The bar aimed at, in units of what ``resolution`` allows; and the share of that which one more
piece like this one, with a step less, may lead to if the step is to be saved."""
_OLD = 0.2
"""Share of the aim below which what a piece adds is not to blame: the error is of old."""
_MOST = 250
_BLOW_UP = 1e8
_STATE = ("detail", "steps", "_fine", "_coarse", "_loss", "_safety", "_rounding", "_first_norm")


class PiecewiseFlow:
    """The flow through a sequence of fields.

    Args:
        config: Of the solver, ``dtype``, ``max_evals`` and tolerances are taken, which hold for
            the error bar here; the method is always the pair described above.
        state: Where it starts: θ, shape ``[d]``, or the lifted state of a flow with memory.
        dim: d.
        resolution: Asked solver error over discrepancy; ``None`` asks for 0.1 on smooth models and
            0.2 across kinks, and for 0.5 where a budget pays.
        steps: Steps the coarse solution takes across the first piece.
        thrifty: Whether a budget pays.
        dtype: Of both solutions, where it is not the solver's.

    Attributes:
        steps: Steps the coarse solution will take across the next piece.
        dearer: How many times the steps of the last piece it should have had, for want of money.
        status: ``ok``, or why it cannot be continued; ``detail`` is the sentence.
    """

    solver = "midpoint"
    behind = ""  # every piece is crossed or given up

    def __init__(
        self,
        config: SolverConfig,
        state: Tensor,
        dim: int,
        *,
        resolution: float | None,
        steps: int = 1,
        thrifty: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.config, self.steps, self._thrifty = config, steps, thrifty
        self.status, self.detail = Status.OK, ""
        self._resolution, self._dim = resolution, dim
        self._fine = self._coarse = state.to(dtype or config.dtype)
        self._first_norm = _norm(self.theta)
        self._loss, self._safety, self._rounding = math.nan, 1.0, 0.0
        self._price, self.dearer = 0.0, 1.0

    @property
    def alive(self) -> bool:
        """Whether the flow can be continued."""
        return self.status is Status.OK

    @property
    def error(self) -> float:
        """Error bar on θ̃, in the units of θ: an upper limit by estimate."""
        return math.hypot(self._safety * self._size(self._fine - self._coarse), self._rounding)

    @property
    def theta(self) -> Tensor:
        """θ̃ at the end of the last piece, shape ``[d]``."""
        return self._fine[: self._dim]

    @property
    def loss(self) -> float | None:
        """Loss of the last piece's objective at :attr:`theta`, by Taylor's formula."""
        return self._loss if math.isfinite(self._loss) else None

    def known_loss(self) -> None:
        """Nothing: the objective of the last piece is not kept."""

    def cross(
        self,
        flow: Flow,
        objective: Objective,
        span: float,
        iterate: Tensor,
        *,
        factor: float = 1.0,
        known: tuple[float, Tensor] | None = None,
    ) -> bool:
        """Follow ``flow`` on ``objective`` for a time; say whether the end was reached.

        Args:
            flow: Field to follow, as configured now.
            objective: f of this piece.
            span: Flow time, ≥ 0.
            iterate: Where the run stands at the end, shape ``[d]``; its distance from the shadow
                is what has to be resolved.
            factor: What the gradient is multiplied by (clipping, accumulation).
            known: ``(f, ∇f)`` at the start, if it is known.
        """
        if not self.alive or span <= 0.0:
            return self.alive
        field = PieceField(flow, objective, "flow", factor)
        slope = None if known is None else field.remember(known[0], self._fine, known[1])
        if field.kinked or not getattr(flow, "smooth", True):
            self._safety = _SAFETY
        most = self._most(field.kinked)
        steps, wanted = 0, min(self.steps, most)
        end: Crossing | None = None
        try:
            with objective.ledger.limited():
                while wanted > steps and self._covered(objective, wanted, steps):
                    steps, spent = wanted, objective.ledger.spent
                    end = crossed(field, self._fine, self._coarse, span, steps, slope)
                    self._price = (objective.ledger.spent - spent) / steps
                    wanted, self.steps = self._judge(end, iterate, steps, most, field.kinked)
        except OverBudgetError as over:
            if end is None:
                self._stop(Status.TRUNCATED, str(over))
        self.dearer = wanted / max(steps, 1)
        if end is not None:  # of the last attempt that was paid for: its bar says what it is worth
            self._arrive(end, field, span)
        return self.alive

    def _covered(self, objective: Objective, wanted: int, steps: int) -> bool:
        """Say whether another attempt can be paid for; the first is begun without asking."""
        return not steps or objective.ledger.covers(wanted * self._price)

    def _most(self, kinked: bool) -> int:
        limit = self.config.max_evals
        most = _MOST if limit is None else min(max(1, int(limit // EVALS)), _MOST)
        return min(most, _KINK_MOST) if kinked and self._resolution is None else most

    def _judge(
        self, end: Crossing, iterate: Tensor, steps: int, most: int, kinked: bool
    ) -> tuple[int, int]:
        """Return how many steps this piece should have had, and those of the next one."""
        apart = end.fine - end.coarse
        bar, scale = self._safety * self._size(apart), _norm(iterate - end.fine[: self._dim])
        if not math.isfinite(bar):
            return (min(4 * steps, most),) * 2
        aim = self._aim(end.fine, scale, kinked)
        added = self._safety * self._size(apart - (self._fine - self._coarse))
        if bar > aim / _AIM and added > 0.5 * aim:
            margin = 1.0 if self._thrifty else 2.0
            fair = math.ceil(steps * math.sqrt(min(margin * added / aim, 16.0)))
            return (min(fair, most),) * 2
        if bar > aim:
            return steps, min(steps + (added > _OLD * aim), most)
        less = steps - 1
        return steps, less if less and bar + added * (steps / less) ** 2 < _WASTE * aim else steps

    def _aim(self, state: Tensor, scale: float, kinked: bool) -> float:
        """Return the bar aimed at."""
        asked = self.config.tolerance(Node(0.0, state, state))
        if asked is not None:
            return asked
        default = _KINK_RESOLUTION if kinked else 0.1
        resolution = self._resolution or (_THRIFTY if self._thrifty else default)
        return _AIM * resolution * max(scale, 1e-12 * self._first_norm, 1e-300)

    def _arrive(self, end: Crossing, field: PieceField, span: float) -> None:
        if not math.isfinite(self._size(end.fine) + self._size(end.coarse) + end.loss):
            status = Status.STIFF if math.isfinite(field.loss) else Status.NON_FINITE
            self._stop(status, "the flow of this batch could not be followed to the step's end")
            return
        self._fine, self._coarse, self._loss = end.fine, end.coarse, end.loss
        size, grain = _norm(self.theta), torch.finfo(field.objective.layout.dtype).eps
        rounded = grain * span * (end.speed + end.curvature * size)
        stored = torch.finfo(self._fine.dtype).eps * size
        self._rounding = math.hypot(self._rounding, rounded, stored)
        if size > _BLOW_UP * max(self._first_norm, 1.0):
            self._stop(Status.BLOW_UP, f"‖θ̃‖ = {size:.2e}")

    def _size(self, state: Tensor) -> float:
        return _norm(state[: self._dim])

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next piece depends on, as plain values."""
        return saved_attributes(self, _STATE) | {"status": self.status.value}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        load_attributes(self, _STATE, saved)
        self.status = Status(saved["status"])

    def _stop(self, status: Status, detail: str) -> None:
        self.status, self.detail = status, detail


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))
