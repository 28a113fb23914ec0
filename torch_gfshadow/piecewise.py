"""PiecewiseFlow: one field after another, each for the length of one step of the run.

The same-batch flow of a minibatch loop is made of it: during step k the shadow follows the flow
of that step's own loss. No solver can run ahead here, so every piece starts one anew; a pair of
high order is then cheaper than a low one, whose embedded estimate means nothing in a first step.
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
from torch_gfshadow.objective import Objective
from torch_gfshadow.shadow import FlowField
from torch_gfshadow.solvers import Auto, Dopri5, SolverConfig
from torch_gfshadow.solvers.base import Node, Stepper
from torch_gfshadow.solvers.error_bar import SAFETY
from torch_gfshadow.status import Status

_CONTRACTION, _CAP = {"dopri5": 3.0}, 3.0
"""True local error over the embedded estimate, in units of hλ, at most ``_CAP``.

The embedded estimate is the error of the pair's lower order. On a linear problem the factor is
0.57 for any hλ up to 2. On tanh networks of two hidden layers at rates of 0.3 and 0.5 smaller
factors covered the true error in fewer steps, and this one not in all (docs/modes.md).
"""
_STRAY = 1.0
"""Share of a local error that points elsewhere than its estimate, where no field may damp it.

These shares are added as norms. On small networks the bar then covers the true error; at small
rates, where it is 1e-5 of the discrepancy, it is some 30 times too large.
"""
_SMOOTH, _ACROSS_KINKS = 0.03, 12.0
"""Embedded estimate beyond which a step crossed a kink, over z⁴ times its length; and what it is
then multiplied by. Smooth networks are at a tenth of that, a ReLU that switches at ten times."""
_SHARE = 0.05
_PATIENCE = 3
_BLOW_UP = 1e8
_STATE: tuple[str, ...] = (
    "detail",
    "_state",
    "_loss",
    "_scale",
    "_error",
    "_pending",
    "_rounding",
    "_stray",
    "_embedded",
)
_STATE += ("_first_norm", "_evals", "_pieces", "_stiffness", "_next_step", "_solver")


class PiecewiseFlow:
    """The flow through a sequence of fields.

    Args:
        config: Solver configuration; ``auto`` stands for ``dopri5`` here.
        state: Where it starts: θ, shape ``[d]``, or the lifted state of a flow with memory.
        dim: d.
        resolution: Asked solver error over discrepancy, 0.1 by default.

    Attributes:
        status: ``ok``, or why it cannot be continued; ``detail`` is the sentence.
    """

    def __init__(
        self, config: SolverConfig, state: Tensor, dim: int, *, resolution: float | None
    ) -> None:
        self.config = (
            Dopri5(dtype=config.dtype, max_evals=config.max_evals)
            if (type(config) is Auto)
            else config
        )
        self.status, self.detail = Status.OK, ""
        self._resolution, self._dim = resolution or 0.1, dim
        self._state = state.to(config.dtype)
        self._first_norm = _norm(self._state[:dim])
        self._loss = math.nan
        self._scale = 0.0
        self._error = torch.zeros_like(self._state)
        self._pending = torch.zeros_like(self._state)
        self._rounding = self._stray = 0.0
        self._embedded = torch.zeros_like(self._state)
        self._evals, self._pieces = 0, 0
        self._stiffness, self._next_step = 1.0, math.inf
        self._solver = self.config.name

    @property
    def solver(self) -> str:
        """Name of the solver in use."""
        return self._solver

    @property
    def alive(self) -> bool:
        """Whether the flow can be continued."""
        return self.status is Status.OK

    @property
    def error(self) -> float:
        """Error bar on θ̃, in the units of θ: an upper limit by estimate."""
        ours = self._error + self._pending
        return SAFETY * math.hypot(_norm(ours[: self._dim]), self._stray, self._rounding)

    @property
    def theta(self) -> Tensor:
        """θ̃ at the end of the last piece, shape ``[d]``."""
        return self._state[: self._dim]

    @property
    def state(self) -> Tensor:
        """The whole state at the end of the last piece: θ̃, and a flow's memory behind it."""
        return self._state

    @state.setter
    def state(self, state: Tensor) -> None:
        self._state = state

    @property
    def loss(self) -> float | None:
        """Loss of the last piece's objective at :attr:`theta`, as the solver came by it."""
        return self._loss if math.isfinite(self._loss) else None

    def observe(self, discrepancy: float) -> None:
        """Take in the discrepancy just measured: the scale that has to be resolved."""
        if math.isfinite(discrepancy) and discrepancy > 0.0:
            # below this, rounding of θ̃ itself is all there is to resolve
            self._scale = max(discrepancy, 1e-12 * self._first_norm)

    def known_loss(self) -> None:
        """Nothing: the objective of the last piece is not kept."""

    def cross(
        self,
        flow: Flow,
        objective: Objective,
        span: float,
        *,
        factor: float = 1.0,
        known: tuple[float, Tensor] | None = None,
    ) -> bool:
        """Follow ``flow`` on ``objective`` for a time; say whether the end was reached.

        Args:
            flow: Field to follow, as configured now.
            objective: f of this piece.
            span: Flow time, ≥ 0.
            factor: What the gradient is multiplied by (clipping, accumulation).
            known: ``(f, ∇f)`` at the start, if it is known.
        """
        if not self.alive or span <= 0.0:
            return self.alive
        field = FlowField(flow, objective, "flow", factor)
        before = objective.ledger.grads["flow"]
        start = self._state
        slope = field(start) if known is None else field.remember(known[0], start, known[1])
        if self._scale == 0.0:
            self._scale = self._local_scale(field, start, slope, span)
        stepper = self.config.start(field, Node(0.0, start, slope), min(span, self._next_step))
        try:
            with objective.ledger.limited():
                self._attempts(stepper, field, span)
                if self.alive:
                    self._arrive(stepper, field, slope, span, objective)
        except OverBudgetError as over:
            self._stop(Status.TRUNCATED, str(over))
        self._evals += objective.ledger.grads["flow"] - before
        self._pieces += 1
        return self.alive

    def _attempts(self, stepper: Stepper, field: FlowField, span: float) -> None:
        rejected, end = 0, span * (1.0 - 1e-12)
        limit = math.inf if self.config.max_evals is None else 4.0 * self.config.max_evals
        calls = 0
        while stepper.right.time < end:
            asked = self.config.tolerance(stepper.right)
            # across a kink no step is accurate: ask less and less, the estimate says what it cost
            slack = 4.0 ** min(max(0, rejected - _PATIENCE), 40)
            tolerance = self._tolerance() * slack if asked is None else asked
            accepted = stepper.step(tolerance, 0.0, span - stepper.right.time)
            calls += 6
            rejected = rejected if accepted else rejected + 1
            if accepted and stepper.local_error is not None:
                self._embedded = self._embedded + stepper.local_error
            if accepted and not _finite(stepper.right.state, field.loss):
                self._stop(Status.NON_FINITE, "the flow of this batch is not finite")
                return
            if not accepted and stepper.next_step < 1e-12 * span:
                status = Status.STIFF if math.isfinite(field.loss) else Status.NON_FINITE
                self._stop(status, f"step size {stepper.next_step:.2e}")
                return
            if calls > limit and stepper.right.time < end:
                self._stop(Status.TRUNCATED, f"{calls} evaluations did not cross one step")
                return

    def _grade_rest(self, stepper: Stepper) -> None:
        """Add the estimates of first steps, which the stepper holds back until graded."""
        waiting = getattr(stepper, "waiting", None)
        if waiting is not None:
            self._embedded = self._embedded + waiting

    def _arrive(
        self, stepper: Stepper, field: FlowField, slope: Tensor, span: float, objective: Objective
    ) -> None:
        node = stepper.right
        self._grade_rest(stepper)
        self._solver = stepper.name
        self._state, self._loss = node.state, field.loss
        turned, speed = _norm(node.field - slope), _norm(slope)
        self._stiffness = min(1.0, turned / speed) if speed > 0.0 else 1.0
        self._add(span * speed)
        self._next_step = stepper.next_step if stepper.next_step < span else math.inf
        grain = torch.finfo(objective.layout.dtype).eps
        self._rounding = math.hypot(self._rounding, grain * span * speed)
        self._carry(field, node, span)
        size = _norm(self.theta)
        if size > _BLOW_UP * max(self._first_norm, 1.0):
            self._stop(Status.BLOW_UP, f"‖θ̃‖ = {size:.2e}")

    def _add(self, travelled: float) -> None:
        """Add the local error of the piece that ended, ``travelled`` long."""
        embedded, self._embedded = self._embedded, torch.zeros_like(self._embedded)
        factor = min(_CAP, _CONTRACTION.get(self._solver, math.inf) * self._stiffness)
        resolved = self._stiffness < 0.7  # beyond, a smooth field looks the same
        if resolved and _norm(embedded) > _SMOOTH * self._stiffness**4 * travelled:
            factor = _ACROSS_KINKS
        error = embedded * factor
        self._pending = self._pending + error
        self._stray += _STRAY * _norm(error[: self._dim])

    def _carry(self, field: FlowField, node: Node, span: float) -> None:
        """Take the error along the flow of this piece; one evaluation.

        ε' = Jε by the exponential of J's Rayleigh quotient; what Jε has beside ε is added to first
        order. Every piece has a J of its own, and that of one batch says little of the next.
        """
        error, self._error = self._error, self._error + self._pending
        self._pending = torch.zeros_like(self._pending)
        size = _norm(error)
        if size == 0.0:
            return
        length = max(SAFETY * size, self._scale, 1e-5 * _norm(node.state), 1e-12)
        moved = field(node.state + (length / size) * error)
        slope = (moved - node.field) * (size / length)
        rate = float(torch.dot(error, slope)) / size**2
        beside = slope - rate * error
        grown = math.exp(max(-50.0, min(50.0, rate * span)))
        reach = span if abs(rate * span) < 1e-8 else (grown - 1.0) / rate
        carried = grown * error + reach * beside
        if bool(torch.isfinite(carried).all()):
            self._error = self._error - error + carried
            self._stray *= max(1.0, min(grown, 10.0))
            stiffness = min(1.0, _norm(slope) / size * span)
            self._stiffness = max(self._stiffness, stiffness)

    def _tolerance(self) -> float:
        target = 0.8 * self._resolution * self._scale
        spent = self.error
        share = _SHARE * target * (max(0.1, target / spent) if spent > target else 1.0)
        factor = _CONTRACTION.get(self._solver, math.inf) * self._stiffness
        return share / max(min(1.0, factor), 1e-3)

    def _local_scale(self, field: FlowField, start: Tensor, slope: Tensor, span: float) -> float:
        """Return ½η·‖F(θ + ηF) − F(θ)‖, what Euler's first step gets wrong; one evaluation."""
        ahead = field(start + span * slope) - slope
        defect = 0.5 * span * _norm(ahead[: self._dim])
        tiny = 1e-12 * max(self._first_norm, 1e-3)
        return max(defect, tiny) if math.isfinite(defect) else tiny

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


def _finite(state: Tensor, loss: float) -> bool:
    return math.isfinite(loss) and math.isfinite(_norm(state))
