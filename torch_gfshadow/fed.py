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
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import OverBudgetError
from torch_gfshadow.flows.base import Flow
from torch_gfshadow.objective import Objective
from torch_gfshadow.passing import Asks
from torch_gfshadow.path import Path, change, field_of
from torch_gfshadow.shadow import FlowField, ShadowFlow, narrow
from torch_gfshadow.solvers.base import Node, SolverConfig, load_plain, save_plain
from torch_gfshadow.solvers.defect import DefectStepper
from torch_gfshadow.solvers.defect_bar import DefectBar
from torch_gfshadow.status import Status

_gradient = attrgetter("grad")
_kind, _PLAIN_KIND = (
    attrgetter("__class__", "layout", "requires_grad"),
    {(Tensor, torch.strided, False)},
)

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


class _Fed(NamedTuple):
    """What carries the solution while it is fed."""

    path: Path
    stepper: DefectStepper
    bar: DefectBar

    def state(self, time: float) -> tuple[Tensor, Tensor]:
        """Return θ̃ and the run's field at ``time``, the run's own."""
        place, field = self.path.ahead(time)
        return place.add_(self.stepper.offset(time)), field


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
        alone = self._started(theta, known, time, step_size)
        self._on: ShadowFlow | _Fed = alone
        self._scale, self._step_size = alone.scale, step_size
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
        on = self._on
        if isinstance(on, ShadowFlow):
            return not self._may_be_fed(on, time, step_size)
        if not self.alive:
            return True
        path, stepper, _ = on
        due = self._foretold is not None or stepper.due <= time + step_size
        if due or time <= path.time:
            return False
        grads = read()
        if grads is None:
            return False
        with torch.no_grad():  # they may carry a graph
            path.take(grads, time, step_size)
        return True

    def asks(self, layout: Layout) -> Asks:
        """Return :meth:`passes` for the steps until :meth:`feed` is called again.

        Args:
            layout: The run's parameters, whose gradients are read where they are plain.
        """
        on, params = self._on, layout.params
        if isinstance(on, ShadowFlow):
            sooner = self._try_at
            return lambda time, step: time < sooner or not self._may_be_fed(on, time, step)
        path, due = on.path, on.stepper.due

        def passes(time: float, step_size: float) -> bool:
            if self._foretold is not None or due <= time + step_size or time <= path.time:
                return not self.alive
            grads = list(map(_gradient, params))
            if set(map(_kind, grads)) != _PLAIN_KIND:
                return False
            path.take(grads, time, step_size)
            return True

        return passes if self.alive else lambda time, step_size: True

    def feed(self, grads: list[Tensor] | None, time: float, step_size: float) -> None:
        """Take the step about to be taken in, and evaluate what has come due.

        Args:
            grads: The gradients it uses, one per parameter; ``None`` if they cannot be read.
            time: Flow time at its beginning.
            step_size: Its η.
        """
        try:
            with self._objective.ledger.limited():
                if isinstance(self._on, ShadowFlow):
                    self._offer(self._on, grads, time, step_size)
                elif self.alive:
                    self._go_on(self._on, grads, time, step_size)
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
        bar = self._new_bar(node)
        bar.inherit(alone.hand_over())
        self._scale = self._distance(state)
        bar.start_from(self._scale)
        turned = change(field, self._before[1])
        size = float(torch.linalg.vector_norm(field))
        self._foresight = 0.5 * step_size * turned * turned * size
        path.remember(*self._before)
        spectral = alone.spectral(self._field)
        first = _FIRST * step_size
        stepper = DefectStepper(self._field, node, field, first, spectral)
        path.remember(time, field)
        path.take(grads, time, step_size)
        self._on = _Fed(path, stepper, bar)
        self._before = self._foretold = None

    def _new_bar(self, node: Node) -> DefectBar:
        field = FlowField(self._flow, self._objective, "error")
        return DefectBar(field, node, narrow(self._layout))

    def _go_on(self, fed: _Fed, grads: list[Tensor] | None, time: float, step_size: float) -> None:
        path, stepper, bar = fed
        if grads is None:
            self._leave(bar, fed.state(time)[0], time, step_size)
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
            self._leave(bar, place + stepper.offset(time), time, step_size)
            return
        path.remember(time, field)
        path.take(grads, time, step_size)
        self._step_size = step_size

    def _distance(self, state: Tensor) -> float:
        """Return how far the run is from ``state``."""
        return float(torch.linalg.vector_norm(self._layout.current(state.dtype).sub_(state)))

    def _leave(self, bar: DefectBar, state: Tensor, time: float, step_size: float) -> None:
        """Go on alone from ``state``, whose error bar is ``bar``."""
        known = self._objective.loss_and_grad(state, "flow")
        self._on = alone = self._started(state, known, time, step_size)
        self._foretold = None
        alone.observe(self._scale)
        alone.take_over(bar.hand_over(), self._foresight)
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
        if isinstance(self._on, _Fed):
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
        return self._own_status if isinstance(self._on, _Fed) else self._on.status

    @property
    def detail(self) -> str:
        """What is behind the status, in words."""
        return self._own_detail if isinstance(self._on, _Fed) else self._on.detail

    @property
    def behind(self) -> str:
        """Why it is not where the run is, in words; empty where it is."""
        return "" if isinstance(self._on, _Fed) else self._on.behind

    @property
    def alive(self) -> bool:
        """Whether the flow can be continued."""
        return self.status is Status.OK

    @property
    def solver(self) -> str:
        """Name of the solver in use."""
        return "auto:defect" if isinstance(self._on, _Fed) else self._on.solver

    @property
    def error(self) -> float:
        """Error bar on the shadow, in the units of θ."""
        if isinstance(self._on, ShadowFlow):
            return self._on.error
        return self._on.bar.value + self._foresight

    @property
    def scale(self) -> float:
        """The discrepancy that has to be resolved."""
        return self._scale if isinstance(self._on, _Fed) else self._on.scale

    def advance(self, time: float, lambda_max: float | None = None) -> bool:
        """Say whether the shadow is known at ``time``, the run's own, after what it takes."""
        if isinstance(self._on, ShadowFlow):
            return self._on.advance(time, lambda_max)
        self._on.stepper.spectral.hint(lambda_max)
        return self.alive

    def state(self, time: float) -> Tensor:
        """Return θ̃(time), shape ``[d]``, at the run's own time."""
        return self._on.state(time) if isinstance(self._on, ShadowFlow) else self._on.state(time)[0]

    def distance(self, layout: Layout, time: float) -> float:
        """Return ‖θ − θ̃(time)‖₂ for the parameters as they are."""
        if isinstance(self._on, ShadowFlow):
            return self._on.distance(layout, time)
        state, self._foretold = self._on.state(time)
        return self._distance(state)

    def loss(self, time: float) -> float:
        """Return f(θ̃(time)): the last one known, and from there on the trapezoidal rule."""
        if isinstance(self._on, ShadowFlow):
            return self._on.loss(time)
        assert self._coefficients is not None
        then, loss, slope = self._loss_at
        a, b = self._coefficients
        state, field = self._on.state(time)
        field = field + self._on.stepper.rate(time)
        gradient = field if b == 0.0 else field - b * state
        rate = float(torch.dot(gradient, field)) / a
        loss += 0.5 * (time - then) * (slope + rate)
        self._loss_at = time, loss, rate
        return loss

    def known_loss(self) -> tuple[Tensor, float]:
        """Return a point of the flow, shape ``[d]``, and f there."""
        if isinstance(self._on, ShadowFlow):
            return self._on.known_loss()
        return self._on.stepper.left.state, self._node_loss

    def inherit(self, before: FedShadow | ShadowFlow) -> None:
        """Go on from where ``before`` stands: its error bar and its scale are taken over."""
        assert isinstance(self._on, ShadowFlow)
        self._on.inherit(before)
        self._scale = before.scale

    def observe(self, discrepancy: float) -> None:
        """Take in the discrepancy just measured: the scale that has to be resolved."""
        if isinstance(self._on, ShadowFlow):
            self._on.observe(discrepancy)
        elif math.isfinite(discrepancy) and discrepancy > 0.0:
            self._scale = discrepancy

    # -- saving -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that the shadow's future depends on: tensors, numbers, strings and lists."""
        on = self._on
        parts = {"alone": on} if isinstance(on, ShadowFlow) else {"alone": None, **on._asdict()}
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
        if saved["alone"] is not None:
            self._on = ShadowFlow.resumed(
                objective, flow, config, saved["alone"], resolution=resolution
            )
            return self
        assert self._coefficients is not None
        path = Path.resumed(self._layout, saved["path"], self._coefficients)
        stepper = DefectStepper.resumed(self._field, saved["stepper"], like)
        bar = self._new_bar(stepper.left)
        bar.load_state_dict(saved["bar"])
        self._on = _Fed(path, stepper, bar)
        return self


def coefficients_of(flow: Flow | None) -> tuple[float, float] | None:
    """Return (a, b) of a field a·∇f + b·θ; ``None`` of another one, or if parameters differ."""
    known = getattr(flow, "coefficients", None)
    return known[0][1:] if known is not None and len(known) == 1 else None
