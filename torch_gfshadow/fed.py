"""FedShadow: a shadow that lives on the run's own gradients where these change little.

It has two ways of going on. Alone (:class:`..shadow.ShadowFlow`): a solver of its own runs ahead of
the run. Fed: the run's gradients carry the solution and only the defect is integrated
(``smooth_feed``, ``kink_feed``), for a fraction of the evaluations. It starts alone, is fed once
the run's gradients change little from step to step, and goes on alone where they do not, or cannot
be read. The solution and its error bar stay the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import OverBudgetError
from torch_gfshadow.feed import Feed, Step
from torch_gfshadow.flows.base import Flow
from torch_gfshadow.kink_feed import KinkFeed
from torch_gfshadow.objective import Objective
from torch_gfshadow.passing import Asks
from torch_gfshadow.path import Path, change, field_of
from torch_gfshadow.shadow import KINK_RESOLUTION, FlowField, ShadowFlow
from torch_gfshadow.smooth_feed import SmoothFeed
from torch_gfshadow.solvers.base import SolverConfig, load_plain, save_plain
from torch_gfshadow.status import Status

_gradient = attrgetter("grad")
_kind, _PLAIN_KIND = (
    attrgetter("__class__", "layout", "requires_grad"),
    {(Tensor, torch.strided, False)},
)

Reader = Callable[[], list[Tensor] | None]

_CALM, _KINK_CALM, _RESTLESS = 0.1, 0.3, 0.5
"""Change of the run's field over a step, relative to it: below, a shadow is fed; above, no more."""
_START, _KINK_START, _AGAIN, _PATIENCE = 9.5, 0.0, 5.0, 40.0
"""Steps before the first comparison, on smooth fields and across kinks, where a solver alone is
dear; to the next one; and after a shadow could not be fed."""
_KINK_FIRST = 0.025
"""First step of a solver alone across kinks, in units of η. On the demo's network an error made
in the run's first step grows sixfold by its tenth."""
_WORTH = 0.1
"""Discrepancy over the way of the flow in the time in which it changes: D is then that much smaller
than the flow, and steps of a third order are the cube root of it longer."""
_PLAIN = ["_own_detail", "_scale", "_foresight", "_try_at", "_returns", "_step_size"]


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
        self._on: ShadowFlow | Feed = alone
        self._scale, self._step_size = alone.scale, step_size
        self._try_at, self._returns = time + self._first_try * step_size, 0
        self._foresight = 0.0

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
            first=_KINK_FIRST if self._field.kinked and self._fine else 0.1,
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
        due = self._foretold is not None or on.due <= time + step_size
        if due or time <= on.path.time:
            return False
        grads = read()
        if grads is None:
            return False
        with torch.no_grad():  # they may carry a graph
            on.path.take(grads, time, step_size)
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
        path, due = on.path, on.due

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
        elif not self._may_pay(alone, change(field, before[1]), time):
            self._try_at = time + _AGAIN * step_size
        elif alone.advance(time):
            self._before = before
            self._begin(alone, grads, field, time, step_size)

    def _may_pay(self, alone: ShadowFlow, changed: float, time: float) -> bool:
        """Say whether to live on gradients that change by this share of themselves per step."""
        if self._kinked(alone):
            return self._fine and changed < _KINK_CALM
        return changed < _CALM and self._pays(alone, time)

    @staticmethod
    def _pays(alone: ShadowFlow, time: float) -> bool:
        """Say whether D is small beside the flow: else its steps are as short as the flow's own."""
        left, right = alone.last_nodes
        if right.time <= left.time and alone.advance(time):  # no record has asked for it so far
            left, right = alone.last_nodes
        h = right.time - left.time
        if h <= 0.0:
            return False
        norm = torch.linalg.vector_norm
        speed, turned = float(norm(right.field)), float(norm(right.field - left.field))
        return alone.scale * turned < _WORTH * h * speed * speed

    def _begin(
        self, alone: ShadowFlow, grads: list[Tensor], field: Tensor, time: float, step_size: float
    ) -> None:
        state = alone.state(time).to(self._config.dtype).clone()
        assert self._coefficients is not None
        assert self._before is not None
        path = Path(self._layout, state.clone(), time, self._coefficients)
        self._scale = self._distance(state)
        kinked, turned = self._kinked(alone), change(field, self._before[1])
        # on a smooth field the next change is like the last one
        missed = turned if kinked else turned * turned
        self._foresight = 0.5 * step_size * missed * float(torch.linalg.vector_norm(field))
        step = Step(state, field, time, step_size, self._scale, self._target)
        kind = KinkFeed if kinked else SmoothFeed
        feed = kind.begin(alone, self._field, path, state, step)
        path.remember(*self._before)
        path.remember(time, field)
        path.take(grads, time, step_size)
        self._on = feed
        self._before = self._foretold = None

    def _go_on(self, fed: Feed, grads: list[Tensor] | None, time: float, step_size: float) -> None:
        path = fed.path
        if grads is None:
            self._leave(fed, fed.state(time)[0], time, step_size, seen=False)
            return
        if time <= path.time:
            path.undo(grads)
        place, field = path.see(grads)
        restless = path.change(field) > _RESTLESS
        if self._foretold is not None:
            missed = float(torch.linalg.vector_norm(field - self._foretold))
            self._foresight = max(0.5 * path.step_size * missed, 0.8 * self._foresight)
            self._foretold = None
        if not restless:
            seen = fed.see(Step(place, field, time, step_size, self._scale, self._target))
            restless = seen.restless
            if seen.ended and not restless:
                self.observe(self._distance(place + fed.offset(time)))
        if restless:
            self._leave(fed, place + fed.offset(time), time, step_size)
            return
        path.remember(time, field)
        path.take(grads, time, step_size)
        self._step_size = step_size

    def _distance(self, state: Tensor) -> float:
        """Return how far the run is from ``state``."""
        return float(torch.linalg.vector_norm(self._layout.current(state.dtype).sub_(state)))

    def _leave(
        self, fed: Feed, state: Tensor, time: float, step_size: float, *, seen: bool = True
    ) -> None:
        """Go on alone from ``state``, with the error bar of ``fed``; ``seen``: F̂ there is known."""
        known = self._objective.loss_and_grad(state, "flow")
        self._on = alone = self._started(state, known, time, step_size)
        self._foretold = None
        alone.observe(self._scale)
        alone.take_over(fed.hand_over())
        if not seen or isinstance(fed, KinkFeed):
            alone.take_over(fed.path.unsure(self._foresight))
        self._try_at = time + _PATIENCE * 2.0**self._returns * step_size
        self._returns += 1

    @property
    def _target(self) -> float:
        """Error bar aimed at."""
        default = KINK_RESOLUTION if self._kinked(self._on) else 0.1
        return 0.8 * (self._resolution or default) * self._scale

    def _kinked(self, on: ShadowFlow | Feed) -> bool:
        """Say whether the field has kinks: the model tells, or the solver so far found out."""
        rough = on.rough if isinstance(on, ShadowFlow) else isinstance(on, KinkFeed)
        return rough or self._field.kinked

    @property
    def _first_try(self) -> float:
        return _KINK_START if self._field.kinked and self._fine else _START

    @property
    def _fine(self) -> bool:
        return fed_across_kinks(self._resolution)

    def _stop(self, status: Status, detail: str) -> None:
        if not isinstance(self._on, ShadowFlow):
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
        return self._on.status if isinstance(self._on, ShadowFlow) else self._own_status

    @property
    def detail(self) -> str:
        """What is behind the status, in words."""
        return self._on.detail if isinstance(self._on, ShadowFlow) else self._own_detail

    @property
    def behind(self) -> str:
        """Why it is not where the run is, in words; empty where it is."""
        return self._on.behind if isinstance(self._on, ShadowFlow) else ""

    @property
    def alive(self) -> bool:
        """Whether the flow can be continued."""
        return self.status is Status.OK

    @property
    def solver(self) -> str:
        """Name of the solver in use."""
        return self._on.solver if isinstance(self._on, ShadowFlow) else f"auto:{self._on.name}"

    @property
    def error(self) -> float:
        """Error bar on the shadow, in the units of θ."""
        if isinstance(self._on, ShadowFlow):
            return self._on.error
        return self._on.error(self._foresight)

    @property
    def scale(self) -> float:
        """The discrepancy that has to be resolved."""
        return self._on.scale if isinstance(self._on, ShadowFlow) else self._scale

    def advance(self, time: float, lambda_max: float | None = None) -> bool:
        """Say whether the shadow is known at ``time``, the run's own, after what it takes."""
        if isinstance(self._on, ShadowFlow):
            return self._on.advance(time, lambda_max)
        self._on.hint(lambda_max)
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
        then, loss, slope = self._on.loss_at
        a, b = self._coefficients
        state, field = self._on.state(time)
        field = field + self._on.rate(time)
        gradient = field if b == 0.0 else field - b * state
        rate = float(torch.dot(gradient, field)) / a
        loss += 0.5 * (time - then) * (slope + rate)
        self._on.loss_at = time, loss, rate
        return loss

    def known_loss(self) -> tuple[Tensor, float]:
        """Return a point of the flow, shape ``[d]``, and f there."""
        if isinstance(self._on, ShadowFlow):
            return self._on.known_loss()
        return self._on.known_loss

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
        return save_plain(self, _PLAIN) | {
            "status": self._own_status.value,
            "before": None if self._before is None else list(self._before),
            "foretold": self._foretold,
            "alone": on.state_dict() if isinstance(on, ShadowFlow) else None,
            "fed": None if isinstance(on, ShadowFlow) else on.state_dict(),
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
        fed = saved["fed"]
        path = Path.resumed(self._layout, fed["path"], self._coefficients)
        kind = KinkFeed if fed["feed"] == KinkFeed.name else SmoothFeed
        self._on = kind.resumed(self._field, path, fed, like)
        return self


def fed_across_kinks(resolution: float | None) -> bool:
    """Say whether to live on the run's gradients across kinks at this ``resolution``.

    Slabs of four steps and more, long enough for the default, pass over branches: of six starts of
    the demo's network one left the flow with a bar too short. Those of a step or two did not.
    """
    return resolution is not None and resolution < KINK_RESOLUTION


def coefficients_of(flow: Flow | None) -> tuple[float, float] | None:
    """Return (a, b) of a field a·∇f + b·θ; ``None`` of another one, or if parameters differ."""
    known = getattr(flow, "coefficients", None)
    return known[0][1:] if known is not None and len(known) == 1 else None
