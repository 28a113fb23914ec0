"""PacedShadow: the flow of an optimizer with memory, integrated by steps and not by flow time.

Running means and velocities forget over a number of steps, whatever the rate. By steps s, a rate
that a schedule changes is a factor of θ' and nothing else jumps or turns stiff, so one solver lives
as long as the shadow. It runs ahead on what the schedule is foreseen to be (``pace``). Where the
run then takes another pace by more than the error allows, the last step of the solver is taken
again; by less, the difference is added to the error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._tree import Layout
from torch_gfshadow.flows.base import Flow, PacedFlow
from torch_gfshadow.flows.in_steps import InSteps
from torch_gfshadow.flows.pace import EDGE, Pace
from torch_gfshadow.objective import Objective
from torch_gfshadow.shadow import ShadowFlow
from torch_gfshadow.solvers.base import Node, Refreshing, SelfGrading, SolverConfig

_MISLED, _STALE = 0.04, 2.0
_LEAST = 1e-3
"""Rates below this share of the last one show no direction."""
"""Share of the error aimed at that one solver step may be off because of the pace foreseen; and
what that is multiplied by, because the next step begins with the slope that was foreseen."""
_KEPT = ("_evals", "_steps_of_run", "_now", "_scale")


class PacedShadow(ShadowFlow):
    """A :class:`ShadowFlow` whose own clock counts steps; times given to it are flow times.

    Args:
        objective: f, evaluated purely.
        flow: Configured as the run is.
        config: Solver configuration.
        state: Lifted state, shape ``[D]``.
        known: ``(f, ∇f)`` there.
        step: The run's step count.
        time: Its flow time.
        resolution: As in :class:`ShadowFlow`.
    """

    # running means are stiff while they fill: a start that is given up costs more than it saves
    dear = 4.0

    _from = 0, 0.0

    def __init__(
        self,
        objective: Objective,
        flow: PacedFlow,
        config: SolverConfig,
        state: Tensor,
        known: tuple[float, Tensor],
        *,
        step: int,
        time: float,
        resolution: float | None,
    ) -> None:
        self._from = step, time
        super().__init__(
            objective,
            flow,
            config,
            torch.cat([state, state.new_zeros(1)]),
            known,
            time=float(step),
            step_size=1.0,
            resolution=resolution,
        )

    def _bind(
        self, objective: Objective, flow: Flow, config: SolverConfig, resolution: float | None
    ) -> None:
        assert isinstance(flow, PacedFlow)
        self._paced, self._dim = flow, objective.layout.dim
        step, time = self._from
        self._steps = InSteps(flow, Pace(step, flow.pace), float(step))
        self._begin(self._steps.pace, float(step), (step, time, 0.0))
        super()._bind(objective, self._steps, config, resolution)

    def _begin(self, pace: Pace, origin: float, now: tuple[int, float, float]) -> None:
        self._pace, self._now_at = pace, now
        self._steps.pace, self._steps.origin = pace, origin
        self._plan: list[tuple[float, ...]] = []
        self._planned_at = pace.known
        self._here, self._offset = pace.at(origin), pace.offset(origin)
        self._last: dict[str, Any] | None = None
        self._misled, self._aside, self._turning = 0.0, 0.0, 1.0
        self._balked = False

    # -- the pace -----------------------------------------------------------------------------

    def keep_pace(self, step: int, time: float, numbers: tuple[float, ...]) -> None:
        """Take in the pace of the step to come.

        Args:
            step: Steps taken so far.
            time: Flow time so far.
            numbers: The flow's pace.
        """
        self._now_at = step, time, self._paced.span(numbers)
        if step < self._pace.known:
            return
        if self._stepper.right.time > step + EDGE:
            self._look_back(step, numbers)
        self._pace.add(step, numbers)

    def _look_back(self, step: int, numbers: tuple[float, ...]) -> None:
        """Compare the pace of a cell that the solver has crossed already with the one foreseen."""
        left, right = self._stepper.left, self._stepper.right
        share = min(right.time, step + 1.0) - max(left.time, float(step))
        foreseen, off = self._plan[step - self._planned_at], 0.0
        for is_, was, last in zip(numbers, foreseen, self._pace.last, strict=True):
            off = max(off, abs(is_ - was) / max(is_, was, 0.1 * last, 1e-300))
        self._misled += _STALE * off * share / (right.time - left.time)
        moved = float(torch.linalg.vector_norm(right.state - left.state))
        if self._last is not None and self._misled * moved > _MISLED * self._target():
            self._take_back(self._last)

    def _take_back(self, before: Mapping[str, Any]) -> None:
        """Undo the last step of the solver, and remember what it has cost."""
        kept = {name: getattr(self, name) for name in _KEPT}
        self._here, self._offset = before["here"], before["offset"]
        super().load_state_dict(before)
        vars(self).update(kept)
        self._misled, self._last = 0.0, None

    # -- as a shadow ----------------------------------------------------------------------------

    def advance(self, time: float, lambda_max: float | None = None) -> bool:
        """Integrate past ``time``; λ_max is of another operator than this field's."""
        return super().advance(self._in_steps(time) - EDGE)

    def state(self, time: float) -> Tensor:
        """Return the state of the flow at ``time``."""
        step, self._aside = self._in_steps(time), 0.0
        state = self._stepper.interpolate(step)[:-1]
        k = round(step)
        before, then = self._planned(k - 1), self._planned(k)
        rate = 0.5 * (before + then)
        if abs(then - before) > 1e-9 * rate and rate > _LEAST * self._pace.last[0]:
            # the flow at each step's own rate: see ``pace``
            ends = self._stepper.left.time, self._stepper.right.time
            reach = 1e-3 * (ends[1] - ends[0])
            a, b = max(step - reach, ends[0]), min(step + reach, ends[1])
            if a < b:
                moved = self._stepper.interpolate(b) - self._stepper.interpolate(a)
                way = moved[: self._dim] * ((then - before) / (12.0 * rate * (b - a)))
                state = torch.cat([state[: self._dim] - way, state[self._dim :]])
                self._aside = self._turning * float(torch.linalg.vector_norm(way))
        return state

    @property
    def error(self) -> float:
        """Error bar on the shadow at the time last asked for."""
        return super().error + self._aside

    def _planned(self, step: int) -> float:
        """Return the rate of a cell as it was foreseen when the solver crossed it, or known."""
        ahead = step - self._planned_at
        return (self._plan[ahead] if 0 <= ahead < len(self._plan) else self._pace.cell(step))[0]

    def distance(self, layout: Layout, time: float) -> float:
        """Return ‖θ − θ̃(time)‖₂ for the parameters as they are."""
        theta = layout.current(self.config.dtype)
        return float(torch.linalg.vector_norm(theta - self._paced.position(self.state(time))))

    def loss(self, time: float) -> float:
        """Return f(θ̃(time))."""
        return super().loss(self._in_steps(time))

    def known_loss(self) -> tuple[Tensor, float]:
        """Return the newest node of the solver and f there."""
        state, loss = super().known_loss()
        return state[:-1], loss

    def _in_steps(self, time: float) -> float:
        """Return the step count at a flow time."""
        step, start, span = self._now_at
        if time >= start:
            ahead = (time - start) / span if span > 0.0 else 1.0
            return step + (1.0 if abs(ahead - 1.0) < EDGE else ahead)
        while time < start:
            step -= 1
            span = self._paced.span(self._pace.cell(step))
            if not span > 0.0 and step < self._steps.origin:
                break
            start -= span
        return step + ((time - start) / span if span > 0.0 else 0.0)

    def _step(self, time: float, lambda_max: float | None) -> None:
        self._blame()
        self._shift()
        self._refresh()
        self._pace.forget(self._stepper.right.time)
        self._last = super().state_dict() | {"here": self._here, "offset": self._offset}
        self._steps.edge = self._pace.jump(self._stepper.right.time)
        before, rate = self._stepper.right, self._here[0]
        super()._step(time, lambda_max)
        ended = self._stepper.right.time
        end = min(ended, self._steps.edge - 2.0 * EDGE)
        self._steps.edge = math.inf
        self._balked = not ended > before.time
        if not self._balked:
            self._here, self._offset = self._pace.at(end), self._pace.offset(end)
            self._turned(before, rate)
        self._planned_at = self._pace.known
        ahead = range(self._planned_at, math.ceil(ended) + 1)
        self._plan = [self._pace.cell(k) for k in ahead]

    def _turned(self, before: Node, rate: float) -> None:
        """Note how much u = y_s/r turns per step, up to 1: what a correction by u is off by."""
        node = self._stepper.right
        if not min(rate, self._here[0]) > 0.0:
            return
        u, v = node.field[: self._dim] / self._here[0], before.field[: self._dim] / rate
        turn = float(torch.linalg.vector_norm(u - v)) / (node.time - before.time)
        self._turning = min(2.0 * turn / max(float(torch.linalg.vector_norm(u)), 1e-300), 1.0)

    def _shift(self) -> None:
        """Stay on the flow meant although the pace around here is not what it was foreseen to be.

        See ``pace``.
        """
        node, rate = self._stepper.right, self._here[0]
        now = self._pace.offset(node.time)
        off, self._offset = now - self._offset, now
        if abs(off) > 1e-9 * rate and rate > _LEAST * self._pace.last[0]:
            away = node.field * (off / rate)
            away[self._dim :] = 0.0
            if isinstance(self._stepper, Refreshing):
                self._stepper.shift(away)
            self._add_error(self._turning * away)

    def _refresh(self) -> None:
        """Evaluate the field anew where the solver stands, if the pace there is not as foreseen."""
        stepper, now = self._stepper, self._pace.at(self._stepper.right.time)
        pairs = zip(now, self._here, strict=True)
        off = max(abs(a - b) / max(a, b, 1e-300) for a, b in pairs)
        ahead = max(stepper.next_step, 1.0)
        moves = off * ahead * float(torch.linalg.vector_norm(stepper.right.field))
        if moves <= _MISLED * self._target() and not (self._balked and off > 1e-9):
            return
        self._here, self._balked = now, False
        if isinstance(stepper, Refreshing):
            stepper.refresh()
        else:
            node = stepper.right
            again = Node(node.time, node.state, self._field(node.state))
            self._stepper = self.config.start(self._field, again, stepper.next_step)

    def _blame(self) -> None:
        """Add to the error what the last step was off because of the pace foreseen."""
        misled, self._misled = self._misled, 0.0
        if misled > 0.0:
            stepper = self._stepper
            error = (stepper.right.state - stepper.left.state) * misled
            error[-1] = 0.0
            self._add_error(error)

    def _add_error(self, error: Tensor) -> None:
        """Add a vector that the solution may be off by where the solver stands."""
        if isinstance(self._stepper, SelfGrading):
            self._stepper.inherit(error)
        else:
            self._bar.add_norm(float(torch.linalg.vector_norm(error)))

    def _limits(self, lambda_max: float | None) -> tuple[float, float]:
        """Shortest and longest step: no longer than the schedule can be foreseen."""
        shortest, longest = super()._limits(lambda_max)
        node = self._stepper.right
        known = self._pace.known - node.time
        speed = float(torch.linalg.vector_norm(node.field))
        allowed = 0.5 * _MISLED * self._target() / max(speed, 1e-300)
        reach = known + self._pace.reach(allowed)
        if known > EDGE and reach < known + 1.0:
            reach = known  # to the end of what is known, and not a part of a step beyond
        longest = min(longest, max(min(reach, self._steps.edge - node.time), EDGE))
        return min(shortest, longest), longest

    def state_dict(self) -> dict[str, Any]:
        """Return all that the shadow's future depends on."""
        paced = {
            "pace": self._pace.state_dict(),
            "origin": self._steps.origin,
            "now_at": list(self._now_at),
            "misled": self._misled,
            "aside": self._aside,
            "turning": self._turning,
            "balked": self._balked,
            "plan": [list(cell) for cell in self._plan],
            "here": list(self._here),
            "offset": self._offset,
            "planned_at": self._planned_at,
            "last": self._last,
        }
        return super().state_dict() | {"paced": paced}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        paced = saved["paced"]
        step, time, span = paced["now_at"]
        pace = Pace.from_state(paced["pace"])
        self._begin(pace, float(paced["origin"]), (int(step), time, span))
        super().load_state_dict(saved)
        self._misled, self._last, self._aside = paced["misled"], paced["last"], paced["aside"]
        self._turning, self._balked = paced["turning"], paced["balked"]
        self._plan = [tuple(map(float, cell)) for cell in paced["plan"]]
        self._planned_at, self._here = int(paced["planned_at"]), tuple(paced["here"])
        self._offset = paced["offset"]
