"""KinkFeed: the defect across kinks, a slab of time at a time (``solvers.slabs``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torch_gfshadow.feed import Seen, Step
from torch_gfshadow.path import Path
from torch_gfshadow.shadow import FlowField, Pace, ShadowFlow
from torch_gfshadow.solvers.adams import SAFETY
from torch_gfshadow.solvers.slabs import PRICE, SlabStepper

_FIRST, _SHORTEST, _LONGEST = 1.0, 0.5, 1.0
"""First, shortest and longest slab, in steps of the run. Where slabs grew to two steps as the bar
allowed, the companion's, three times as long, passed over branches: a few such moments in hundreds
of steps made up all of the bar from then on."""
_PACE = Pace(free=50, per_step=1.38)
_LATE = 1e-6
_FADES = 0.9
"""What is left at the next look of the largest jump: with few kinks in a step, jumps vary."""


class KinkFeed:
    """P + S with S from :class:`SlabStepper`, which has its own error bar; see ``feed``."""

    name = SlabStepper.name

    def __init__(
        self,
        field: FlowField,
        path: Path,
        stepper: SlabStepper,
        loss_at: tuple[float, float, float],
        known_loss: tuple[Tensor, float],
    ) -> None:
        self.path, self._field, self._stepper = path, field, stepper
        self.loss_at, self.known_loss = loss_at, known_loss
        self._begun, self._jump = loss_at[0], 0.0

    @classmethod
    def begin(
        cls,
        alone: ShadowFlow,
        field: FlowField,
        path: Path,
        ahead: Tensor,
        step: Step,
    ) -> KinkFeed:
        """Go on from where ``alone`` stands.

        Args:
            alone: The shadow so far; its error bar is taken over.
            field: F.
            path: P, which begins at the step.
            ahead: θ̃ there, shape ``[d]``.
            step: The run's step.
        """
        rate = field(ahead) - step.field
        stepper = SlabStepper(field, step.time, ahead, rate, _FIRST * step.size)
        stepper.inherit(alone.hand_over())
        loss = step.time, field.loss, field.loss_rate
        return cls(field, path, stepper, loss, (ahead, field.loss))

    @property
    def due(self) -> float:
        """Time of what has to be evaluated, or ended, next."""
        return self._stepper.due

    def see(self, step: Step) -> Seen:
        """Evaluate and end the slabs that have come due."""
        stepper, field, ended = self._stepper, self._field, False
        self._jump = max(self.path.jump(step.field), _FADES * self._jump)
        while stepper.due <= step.time + _LATE * step.size:
            at = min(stepper.due, step.time)
            here, _ = self.path.back(step.place, step.field, step.time, at)
            if stepper.evaluates:
                state = stepper.evaluate(here, step.target)
                self.loss_at = at, field.loss, field.loss_rate
                self.known_loss = state, field.loss
                finite = math.isfinite(field.loss)
            else:
                finite, ended = stepper.end(here, step.target, *self._limits(step)), True
            if not finite or stepper.next_step < _SHORTEST * step.size:
                return Seen(ended, True)
        return Seen(ended, False)

    def _limits(self, step: Step) -> tuple[float, float]:
        """Return the shortest and the longest slab worth having."""
        steps, spent = round((step.time - self._begun) / step.size), self._stepper.evaluations
        shortest = _PACE.shortest(spent, steps, step.size, PRICE)
        return max(shortest, _SHORTEST * step.size), _LONGEST * step.size

    def state(self, time: float) -> tuple[Tensor, Tensor]:
        """Return θ̃ and the run's field at ``time``, the run's own."""
        place, field = self.path.ahead(time, level=True)
        return place.add_(self._stepper.ahead(place, field, time, self.path.step_size)), field

    def offset(self, time: float) -> Tensor:
        """Return S at ``time``, shape ``[d]``."""
        return self._stepper.offset(time)

    def rate(self, time: float) -> Tensor:
        """Return S', shape ``[d]``."""
        return self._stepper.rate()

    def hint(self, lambda_max: float | None) -> None:
        """Take in λ_max as a probe found it."""
        self._stepper.hint(lambda_max)

    def error(self, foresight: float) -> float:
        """Return the error bar at the run's own time: of S, and of how S and P go on up to it.

        What the next gradients are going to jump by has nothing to do with errors made before.
        """
        step = self.path.step_size
        lag = self._stepper.lag(self.path.time + step, step)
        ahead = math.hypot(max(foresight, self._jump), lag)
        return math.hypot(self._stepper.error, SAFETY * ahead)

    def hand_over(self) -> Tensor | None:
        """Return an error as long as the bar, pointing as it does by estimate, shape ``[d]``."""
        return self._stepper.hand_over()

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on, as tensors, numbers, strings and lists."""
        return {
            "feed": self.name,
            "path": self.path.state_dict(),
            "stepper": self._stepper.state_dict(),
            "begun": self._begun,
            "jump": self._jump,
            "loss_at": list(self.loss_at),
            "known_loss": list(self.known_loss),
        }

    @classmethod
    def resumed(
        cls, field: FlowField, path: Path, saved: Mapping[str, Any], like: Tensor
    ) -> KinkFeed:
        """Return the feed that was saved; ``path`` is resumed already."""
        stepper = SlabStepper.resumed(field, saved["stepper"], like)
        time, slope_loss, rate = saved["loss_at"]
        state, loss = saved["known_loss"]
        self = cls(field, path, stepper, (time, slope_loss, rate), (state.to(like), loss))
        self._begun, self._jump = saved["begun"], saved["jump"]
        return self
