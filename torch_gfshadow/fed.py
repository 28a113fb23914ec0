"""FedShadow: a shadow that lives on the run's own gradients where the run is smooth.

It has two ways of going on. Alone (:class:`..shadow.ShadowFlow`): a solver of its own runs ahead of
the run. Fed: the run's gradients carry the solution and only the defect is integrated
(``solvers.defect``), for a fraction of the evaluations. It starts alone, is fed once the run's
gradients change little from step to step, and goes on alone where they do not, or cannot be read.
The solution and its error bar stay the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import OverBudgetError
from torch_gfshadow.flows.base import Flow
from torch_gfshadow.objective import Objective
from torch_gfshadow.path import Path, change, field_of
from torch_gfshadow.shadow import FlowField, ShadowFlow, narrow
from torch_gfshadow.solvers.base import Node, SolverConfig, load_plain, save_plain
from torch_gfshadow.solvers.defect import DefectStepper
from torch_gfshadow.solvers.defect_bar import DefectBar
from torch_gfshadow.status import Status

Reader = Callable[[], list[Tensor] | None]

_CALM, _RESTLESS = 0.1, 0.5
"""Change of the run's field over a step, relative to it: below, a shadow is fed; above, no more."""
_START, _AGAIN, _PATIENCE = 9.5, 5.0, 40.0
"""Steps before the first comparison, to the next one, and after a shadow could not be fed."""
_FIRST, _SHORTEST = 1.0, 0.6
_WILD = 10.0
_SHARE, _FLOOR = 0.3, 0.3
_PLAIN = ["_own_detail", "_scale", "_foresight", "_try_at", "_returns", "_loss_at", "_node_loss"]
_PLAIN += ["_step_size"]


class FedShadow:
    """The flow from one starting point, for a field a·∇f + b·θ; arguments as in ``ShadowFlow``."""

    low_storage = False
    rough = False

    def __init__(
        self,
        objective: Objective,
        flow: Flow,
        config: SolverConfig,
        theta: Tensor,
        known: tuple[float, Tensor],
        *,
        time: float,
        step_size: float,
        resolution: float | None,
    ) -> None:
        self._bind(objective, flow, config, resolution)
        self._alone: ShadowFlow | None = self._started(theta, known, time, step_size)
        self._scale, self._step_size = self._alone.scale, step_size
        self._try_at, self._returns = time + _START * step_size, 0
        self._foresight = 0.0
        self._loss_at: tuple[float, float, float] = time, known[0], 0.0
        self._node_loss = known[0]

    def _bind(
        self, objective: Objective, flow: Flow, config: SolverConfig, resolution: float | None
    ) -> None:
        self._objective, self._flow = objective, flow
        self._config, self._resolution = config, resolution
        self._field = FlowField(flow, objective, "flow")
        self._own_status, self._own_detail = Status.OK, ""
        self._path: Path | None = None
        self._stepper: DefectStepper | None = None
        self._bar: DefectBar | None = None
        self._before: tuple[float, Tensor] | None = None  # the run's field a step ago
        self._foretold: Tensor | None = None

    def _started(
        self, theta: Tensor, known: tuple[float, Tensor], time: float, step_size: float
    ) -> ShadowFlow:
        return ShadowFlow(
            self._objective,
            self._flow,
            self._config,
            theta,
            known,
            time=time,
            step_size=step_size,
            resolution=self._resolution,
        )

    # -- the run, step by step --------------------------------------------------------------------

    def passes(self, read: Reader, time: float, step_size: float) -> bool:
        """Take the step about to be taken in if that needs no more than an addition; say so.

        Args:
            read: Returns the gradients it uses, one per parameter; ``None`` if it cannot.
            time: Flow time at its beginning.
            step_size: Its η.
        """
        if self._alone is not None:
            return not self._may_be_fed(self._alone, time, step_size)
        path, stepper = self._path, self._stepper
        if not self.alive or path is None or stepper is None:
            return True
        due = self._foretold is not None or stepper.due <= time + step_size
        if due or time <= path.time:
            return False
        grads = read()
        if grads is None:
            return False
        path.take(grads, time, step_size)
        return True

    def feed(self, grads: list[Tensor] | None, time: float, step_size: float) -> None:
        """Take the step about to be taken in, and evaluate what has come due.

        Args:
            grads: The gradients it uses, one per parameter; ``None`` if they cannot be read.
            time: Flow time at its beginning.
            step_size: Its η.
        """
        try:
            with self._objective.ledger.limited():
                if self._alone is not None:
                    self._offer(self._alone, grads, time, step_size)
                elif self.alive:
                    self._go_on(grads, time, step_size)
        except OverBudgetError as over:
            self._stop(Status.TRUNCATED, str(over))

    def _may_be_fed(self, alone: ShadowFlow, time: float, step_size: float) -> bool:
        return time >= self._try_at and time + 2.0 * step_size > alone.reached and alone.alive

    def _offer(
        self, alone: ShadowFlow, grads: list[Tensor] | None, time: float, step_size: float
    ) -> None:
        """Compare two gradients of the run in a row; where they are alike, live on them."""
        if not self._may_be_fed(alone, time, step_size):
            return
        before, self._before = self._before, None
        self._step_size = step_size
        if grads is None or self._coefficients is None or step_size <= 0.0:
            self._try_at = time + _PATIENCE * step_size
            return
        field = field_of(self._layout, self._coefficients, grads, self._config.dtype)
        if before is None or time - before[0] > 1.5 * step_size:
            self._before = time, field
        elif not change(field, before[1]) < _CALM:
            self._try_at = time + _AGAIN * step_size
        elif alone.advance(time):
            self._before = before
            self._begin(alone, grads, field, time, step_size)

    def _begin(
        self, alone: ShadowFlow, grads: list[Tensor], field: Tensor, time: float, step_size: float
    ) -> None:
        state = alone.state(time).to(self._config.dtype).clone()
        node = Node(time, state.clone(), self._field(state))
        self._loss_at = time, self._field.loss, self._field.loss_rate
        self._node_loss = self._field.loss
        assert self._coefficients is not None
        assert self._before is not None
        path = Path(self._layout, state, time, self._coefficients)
        self._bar = DefectBar(
            FlowField(self._flow, self._objective, "error"), node, narrow(self._layout)
        )
        self._bar.inherit(alone.hand_over())
        self._scale = self._distance(state)
        self._bar.start_from(self._scale)
        turned = change(field, self._before[1])
        size = float(torch.linalg.vector_norm(field))
        self._foresight = 0.5 * step_size * turned * turned * size
        path.remember(*self._before)
        spectral = alone.spectral(self._field)
        first = _FIRST * step_size
        self._stepper = DefectStepper(self._field, node, field, first, spectral)
        path.remember(time, field)
        path.take(grads, time, step_size)
        self._path, self._alone, self._before, self._foretold = path, None, None, None

    def _go_on(self, grads: list[Tensor] | None, time: float, step_size: float) -> None:
        path, stepper, bar = self._path, self._stepper, self._bar
        assert path is not None
        assert stepper is not None
        assert bar is not None
        if grads is None:
            self._leave(path.ahead(time)[0] + stepper.offset(time), time, step_size)
            return
        if time <= path.time:
            path.undo(grads)
        place, field = path.see(grads)
        restless = path.change(field) > _RESTLESS
        if self._foretold is not None:
            missed = float(torch.linalg.vector_norm(field - self._foretold))
            self._foresight = max(0.5 * path.step_size * missed, 0.8 * self._foresight)
            self._foretold = None
        ended = False
        while stepper.due <= time and not restless:
            at = stepper.due
            here, then = path.back(place, field, time, at)
            node = stepper.evaluate(here, then)
            self._loss_at = at, self._field.loss, self._field.loss_rate
            wild = float(torch.linalg.vector_norm(stepper.value)) > _WILD * self._scale
            restless = wild or not math.isfinite(self._field.loss)
            if node is not None and not restless:
                path.shift(stepper.value)
                place.add_(stepper.value)
                bar.allowed = self._target
                bar.add(
                    stepper.local_error,
                    node,
                    min(stepper.stability, stepper.h_lambda),
                    self._scale,
                    stepper.ungraded,
                    stepper.stages,
                )
                self._node_loss = self._field.loss
                stepper.proceed(node, then, self._tolerance(bar))
                restless = stepper.next_step < _SHORTEST * step_size
                ended = True
        if ended and not restless:
            self.observe(self._distance(place + stepper.offset(time)))
        if restless:
            self._leave(place + stepper.offset(time), time, step_size)
            return
        path.remember(time, field)
        path.take(grads, time, step_size)
        self._step_size = step_size

    def _distance(self, state: Tensor) -> float:
        """Return how far the run is from ``state``."""
        return float(torch.linalg.vector_norm(self._layout.current(state.dtype).sub_(state)))

    def _leave(self, state: Tensor, time: float, step_size: float) -> None:
        """Go on alone from ``state``."""
        bar = self._bar
        assert bar is not None
        self._stepper = self._path = self._bar = self._foretold = None
        known = self._objective.loss_and_grad(state, "flow")
        self._alone = self._started(state, known, time, step_size)
        self._alone.observe(self._scale)
        self._alone.take_over(bar.hand_over(), self._foresight)
        self._try_at = time + _PATIENCE * 2.0**self._returns * step_size
        self._returns += 1

    def _tolerance(self, bar: DefectBar) -> float:
        """Local error allowed to the next step, from what is left of the error allowance."""
        return _SHARE * max(self._target - bar.value, _FLOOR * self._target)

    @property
    def _target(self) -> float:
        """Error bar aimed at."""
        return 0.8 * (self._resolution or 0.1) * self._scale

    def _stop(self, status: Status, detail: str) -> None:
        if self._alone is None:
            self._own_status, self._own_detail = status, detail

    # -- what is read -----------------------------------------------------------------------------

    @property
    def _layout(self) -> Layout:
        return self._objective.layout

    @property
    def _empty(self) -> Tensor:
        return torch.empty(0, dtype=self._config.dtype, device=self._layout.device)

    @property
    def _coefficients(self) -> tuple[float, float] | None:
        return coefficients_of(self._flow)

    @property
    def status(self) -> Status:
        """State of the flow."""
        return self._own_status if self._alone is None else self._alone.status

    @property
    def detail(self) -> str:
        """What is behind the status, in words."""
        return self._own_detail if self._alone is None else self._alone.detail

    @property
    def behind(self) -> str:
        """Why it is not where the run is, in words; empty where it is."""
        return "" if self._alone is None else self._alone.behind

    @property
    def alive(self) -> bool:
        """Whether the flow can be continued."""
        return self.status is Status.OK

    @property
    def solver(self) -> str:
        """Name of the solver in use."""
        return "auto:defect" if self._alone is None else self._alone.solver

    @property
    def error(self) -> float:
        """Error bar on the shadow, in the units of θ."""
        if self._alone is not None:
            return self._alone.error
        assert self._bar is not None
        return self._bar.value + self._foresight

    @property
    def scale(self) -> float:
        """The discrepancy that has to be resolved."""
        return self._scale if self._alone is None else self._alone.scale

    def advance(self, time: float, lambda_max: float | None = None) -> bool:
        """Say whether the shadow is known at ``time``, the run's own, after what it takes."""
        if self._alone is not None:
            return self._alone.advance(time, lambda_max)
        if self._stepper is not None:
            self._stepper.spectral.hint(lambda_max)
        return self.alive

    def state(self, time: float) -> Tensor:
        """Return θ̃(time), shape ``[d]``, at the run's own time."""
        if self._alone is not None:
            return self._alone.state(time)
        assert self._path is not None
        assert self._stepper is not None
        return self._path.ahead(time)[0].add_(self._stepper.offset(time))

    def distance(self, layout: Layout, time: float) -> float:
        """Return ‖θ − θ̃(time)‖₂ for the parameters as they are."""
        if self._alone is not None:
            return self._alone.distance(layout, time)
        assert self._path is not None
        assert self._stepper is not None
        state, self._foretold = self._path.ahead(time)
        return self._distance(state.add_(self._stepper.offset(time)))

    def loss(self, time: float) -> float:
        """Return f(θ̃(time)): the last one known, and from there on the trapezoidal rule."""
        if self._alone is not None:
            return self._alone.loss(time)
        assert self._path is not None
        assert self._stepper is not None
        assert self._coefficients is not None
        then, loss, slope = self._loss_at
        a, b = self._coefficients
        place, field = self._path.ahead(time)
        field = field + self._stepper.rate(time)
        gradient = field if b == 0.0 else field - b * (place + self._stepper.offset(time))
        rate = float(torch.dot(gradient, field)) / a
        loss += 0.5 * (time - then) * (slope + rate)
        self._loss_at = time, loss, rate
        return loss

    def known_loss(self) -> tuple[Tensor, float]:
        """Return a point of the flow, shape ``[d]``, and f there."""
        if self._alone is not None:
            return self._alone.known_loss()
        assert self._stepper is not None
        return self._stepper.left.state, self._node_loss

    def inherit(self, before: FedShadow | ShadowFlow) -> None:
        """Go on from where ``before`` stands: its error bar and its scale are taken over."""
        assert self._alone is not None
        self._alone.inherit(before)
        self._scale = before.scale

    def observe(self, discrepancy: float) -> None:
        """Take in the discrepancy just measured: the scale that has to be resolved."""
        if self._alone is not None:
            self._alone.observe(discrepancy)
        elif math.isfinite(discrepancy) and discrepancy > 0.0:
            self._scale = discrepancy

    # -- saving -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that the shadow's future depends on: tensors, numbers, strings and lists."""
        parts: dict[str, ShadowFlow | Path | DefectStepper | DefectBar | None] = {
            "alone": self._alone,
            "path": self._path,
            "stepper": self._stepper,
            "bar": self._bar,
        }
        return save_plain(self, _PLAIN) | {
            "status": self._own_status.value,
            "before": None if self._before is None else list(self._before),
            "foretold": self._foretold,
            **{key: None if part is None else part.state_dict() for key, part in parts.items()},
        }

    @classmethod
    def resumed(
        cls,
        objective: Objective,
        flow: Flow,
        config: SolverConfig,
        saved: Mapping[str, Any],
        *,
        resolution: float | None,
    ) -> FedShadow:
        """Return the shadow that ``saved`` describes; costs no evaluation."""
        self = cls.__new__(cls)
        self._bind(objective, flow, config, resolution)
        load_plain(self, _PLAIN, saved)
        self._loss_at = tuple(saved["loss_at"])
        self._own_status = Status(saved["status"])
        like = self._empty
        if saved["before"] is not None:
            self._before = float(saved["before"][0]), saved["before"][1].to(like)
        if saved["foretold"] is not None:
            self._foretold = saved["foretold"].to(like)
        self._alone = None
        if saved["alone"] is not None:
            self._alone = ShadowFlow.resumed(
                objective, flow, config, saved["alone"], resolution=resolution
            )
            return self
        assert self._coefficients is not None
        self._path = Path.resumed(self._layout, saved["path"], self._coefficients)
        self._stepper = DefectStepper.resumed(self._field, saved["stepper"], like)
        self._bar = DefectBar(
            FlowField(flow, objective, "error"), self._stepper.left, narrow(self._layout)
        )
        self._bar.load_state_dict(saved["bar"])
        return self


def coefficients_of(flow: Flow | None) -> tuple[float, float] | None:
    """Return (a, b) of a field a·∇f + b·θ; ``None`` of another one, or if parameters differ."""
    known = getattr(flow, "coefficients", None)
    return known[0][1:] if known is not None and len(known) == 1 else None
