"""PiecewiseFlow: one field after another, each for the length of one step of the run.

The same-batch flow of a minibatch loop is made of it: during step k the shadow follows the flow
of that step's own loss. No solver can run ahead here, so every piece is crossed by a method of a
single step. Two solutions are carried from piece to piece: a coarse one takes midpoint steps, and
a fine one, the shadow, takes two of half the length for each. Their distance is the error bar. Both
see all that happens to an error, growth and decay, curvature, kinks, rounding, and nothing about
it is linearised or fitted. On smooth fields the fine solution is three times closer to the flow,
or more. Where the model has kinks, the midpoint slopes are averaged over the step (see
``_kinks``), and entries that are held at a kink, or might be on its other side, are looked after
(see ``sides``).

Source: step doubling, Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, II.4,
applied to the global error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._blocks import Terms, combined
from torch_gfshadow._plain import load_attributes, saved_attributes
from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import OverBudgetError
from torch_gfshadow.flows.base import Flow
from torch_gfshadow.midpoints import EVALS, Crossing, Pair, PieceField
from torch_gfshadow.objective import Objective
from torch_gfshadow.shadow import KINK_RESOLUTION
from torch_gfshadow.solvers import SolverConfig
from torch_gfshadow.status import Status

_SAFETY = 2.0
"""The bar over the distance where the field has kinks, or the root of a running mean in it (RMSprop
and Adam). The two solutions are then between first and second order, or now and then take a kink
alike: measured by ``benchmarks/calibration_batch.py``."""
_KINK_MOST = 5
"""Steps of the pair for one of the run: the most across kinks unless ``resolution`` is given."""
_THRIFTY = 0.5
"""What is asked for where a budget pays: one more number is worth more than one more digit."""
_AIM, _WASTE = 0.8, 0.9
"""The bar aimed at, in units of what ``resolution`` allows; and the share of that which one more
piece like this one, with a step less, may lead to if the step is to be saved."""
_OLD = 0.2
"""Share of the aim below which what a piece adds is not to blame: the error is of old."""
_MOST = 250
_BLOW_UP = 1e8
_STATE = ("detail", "steps", "_loss", "_safety", "_rounding", "_first_norm")


class PiecewiseFlow:
    """The flow through a sequence of fields.

    Args:
        config: Of the solver, ``dtype``, ``max_evals`` and tolerances are taken, which hold for
            the error bar here; the method is always the pair described above.
        pair: Both solutions where they start, in full or in low storage.
        resolution: Asked solver error over discrepancy; ``None`` asks for 0.1 on smooth models and
            0.2 across kinks, and for 0.5 where a budget pays.
        steps: Steps the coarse solution takes across the first piece.
        thrifty: Whether a budget pays.

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
        pair: Pair,
        *,
        resolution: float | None,
        steps: int = 1,
        thrifty: bool = False,
    ) -> None:
        self.config, self.steps, self._thrifty = config, steps, thrifty
        self.status, self.detail = Status.OK, ""
        self._resolution, self._pair = resolution, pair
        self._first_norm = pair.size
        self._loss, self._safety, self._rounding = math.nan, 1.0, 0.0
        self._price, self.dearer = 0.0, 1.0

    @property
    def alive(self) -> bool:
        """Whether the flow can be continued."""
        return self.status is Status.OK

    @property
    def error(self) -> float:
        """Error bar on θ̃, in the units of θ: an upper limit by estimate."""
        return math.hypot(self._safety * self._pair.gap, self._rounding)

    @property
    def theta(self) -> Tensor:
        """θ̃ at the end of the last piece, a new vector of shape ``[d]``."""
        return combined(self.terms)

    @property
    def terms(self) -> Terms:
        """θ̃ at the end of the last piece, as a sum of vectors of shape ``[d]``."""
        return self._pair.terms

    @property
    def loss(self) -> float | None:
        """Loss of the last piece's objective at θ̃, by Taylor's formula."""
        return self._loss if math.isfinite(self._loss) else None

    def known_loss(self) -> None:
        """Nothing: the objective of the last piece is not kept."""

    def cross(
        self,
        flow: Flow,
        objective: Objective,
        span: float,
        iterate: Layout,
        *,
        factor: float = 1.0,
        known: tuple[float, Tensor] | None = None,
    ) -> bool:
        """Follow ``flow`` on ``objective`` for a time; say whether the end was reached.

        Args:
            flow: Field to follow, as configured now.
            objective: f of this piece.
            span: Flow time, ≥ 0.
            iterate: The run's parameters, at the end of the piece; their distance from the shadow
                is what has to be resolved.
            factor: What the gradient is multiplied by (clipping, accumulation).
            known: ``(f, ∇f)`` at the start, if it is known.
        """
        if not self.alive or span <= 0.0:
            return self.alive
        field = PieceField(flow, objective, "flow", factor)
        if field.kinked or not getattr(flow, "smooth", True):
            self._safety = _SAFETY
        most = self._most(field.kinked)
        steps, wanted = 0, min(self.steps, most)
        end: Crossing | None = None
        try:
            with objective.ledger.limited():
                while wanted > steps and self._covered(objective, wanted, steps):
                    steps, spent = wanted, objective.ledger.spent
                    if objective.ledger.afford is None:
                        end = None  # nothing breaks off the better one: its place is free
                    end = self._pair.cross(field, span, steps, known)
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
        self, end: Crossing, iterate: Layout, steps: int, most: int, kinked: bool
    ) -> tuple[int, int]:
        """Return how many steps this piece should have had, and those of the next one."""
        bar, scale = self._safety * end.gap, iterate.distance([(v, -w) for v, w in end.terms])
        if not math.isfinite(bar):
            return (min(4 * steps, most),) * 2
        aim = self._aim(end, scale, kinked)
        added = self._safety * end.added
        if bar > aim / _AIM and added > 0.5 * aim:
            margin = 1.0 if self._thrifty else 2.0
            fair = math.ceil(steps * math.sqrt(min(margin * added / aim, 16.0)))
            return (min(fair, most),) * 2
        less = steps - 1
        if bar > aim:
            old = added <= _OLD * aim
            fewer = old and less and added * (steps / less) ** 2 <= _OLD * aim
            return steps, less if fewer else min(steps + (not old), most)
        return steps, less if less and bar + added * (steps / less) ** 2 < _WASTE * aim else steps

    def _aim(self, end: Crossing, scale: float, kinked: bool) -> float:
        """Return the bar aimed at."""
        asked = self.config.asked(*end.extent)
        if asked is not None:
            return asked
        default = KINK_RESOLUTION if kinked else 0.1
        resolution = self._resolution or (_THRIFTY if self._thrifty else default)
        return _AIM * resolution * max(scale, 1e-12 * self._first_norm, 1e-300)

    def _arrive(self, end: Crossing, field: PieceField, span: float) -> None:
        loss, speed, curvature = end.facts
        if not math.isfinite(end.size + end.gap + loss):
            status = Status.STIFF if math.isfinite(field.loss) else Status.NON_FINITE
            self._stop(status, "the flow of this batch could not be followed to the step's end")
            return
        self._pair.arrive(end)
        self._loss, size = loss, self._pair.size
        rounded = torch.finfo(field.objective.layout.dtype).eps * span * (speed + curvature * size)
        self._rounding = math.hypot(self._rounding, rounded, self._pair.grain)
        if size > _BLOW_UP * max(self._first_norm, 1.0):
            self._stop(Status.BLOW_UP, f"‖θ̃‖ = {size:.2e}")

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next piece depends on, as plain values."""
        saved = saved_attributes(self, _STATE) | self._pair.state_dict()
        return saved | {"status": self.status.value}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        load_attributes(self, _STATE, saved)
        self._pair.load_state_dict(saved)
        self.status = Status(saved["status"])

    def _stop(self, status: Status, detail: str) -> None:
        self.status, self.detail = status, detail
