"""SmoothFeed: the defect where the run is smooth, in very long steps (``solvers.defect``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.feed import Seen, Step
from torch_gfshadow.path import Path
from torch_gfshadow.shadow import FlowField, ShadowFlow, narrow
from torch_gfshadow.solvers.base import Node
from torch_gfshadow.solvers.defect import DefectStepper
from torch_gfshadow.solvers.defect_bar import DefectBar

_FIRST, _SHORTEST = 1.0, 0.6
"""First and shortest step worth taking, in steps of the run."""
_WILD = 10.0
"""Discrepancies that the defect may come to."""
_SHARE, _FLOOR = 0.3, 0.3


class SmoothFeed:
    """P + D with D from :class:`DefectStepper`, and its error bar; see ``feed``."""

    name = "defect"

    def __init__(
        self, field: FlowField, path: Path, stepper: DefectStepper, bar: DefectBar
    ) -> None:
        self.path, self._field, self._stepper, self._bar = path, field, stepper, bar
        self.loss_at: tuple[float, float, float] = stepper.left.time, field.loss, field.loss_rate
        self.known_loss: tuple[Tensor, float] = stepper.left.state, field.loss

    @classmethod
    def begin(
        cls, alone: ShadowFlow, field: FlowField, path: Path, ahead: Tensor, step: Step
    ) -> SmoothFeed:
        """Go on from where ``alone`` stands.

        Args:
            alone: The shadow so far; its error bar is taken over.
            field: F.
            path: P, which begins at the step.
            ahead: θ̃ there, shape ``[d]``.
            step: The run's step.
        """
        node = Node(step.time, ahead, field(ahead))
        bar = _bar(field, node)
        bar.inherit(alone.hand_over())
        bar.start_from(step.scale)
        first = _FIRST * step.size
        stepper = DefectStepper(field, node, step.field, first, alone.spectral(field))
        return cls(field, path, stepper, bar)

    @property
    def due(self) -> float:
        """Time of what has to be evaluated next."""
        return self._stepper.due

    def see(self, step: Step) -> Seen:
        """Evaluate the stages that have come due."""
        stepper, bar, field = self._stepper, self._bar, self._field
        ended = restless = False
        while stepper.due <= step.time and not restless:
            at = stepper.due
            here, then = self.path.back(step.place, step.field, step.time, at)
            node = stepper.evaluate(here, then)
            self.loss_at = at, field.loss, field.loss_rate
            wild = float(torch.linalg.vector_norm(stepper.value)) > _WILD * step.scale
            restless = wild or not math.isfinite(field.loss)
            if node is not None and not restless:
                self.path.shift(stepper.value)
                step.place.add_(stepper.value)
                bar.allowed = step.target
                bar.add(
                    stepper.local_error,
                    node,
                    min(stepper.stability, stepper.h_lambda),
                    step.scale,
                    evaluations=stepper.stages,
                )
                self.known_loss = node.state, self.loss_at[1]
                stepper.proceed(node, then, self._tolerance(step.target))
                bar.expect(stepper.ungraded, node.time, stepper.length)
                restless = stepper.next_step < _SHORTEST * step.size
                ended = True
        return Seen(ended, restless)

    def _tolerance(self, target: float) -> float:
        """Local error allowed to the next step, from what is left of the error allowance."""
        return _SHARE * max(target - self._bar.value, _FLOOR * target)

    def state(self, time: float) -> tuple[Tensor, Tensor]:
        """Return θ̃ and the run's field at ``time``, the run's own."""
        place, field = self.path.ahead(time)
        return place.add_(self.offset(time)), field

    def offset(self, time: float) -> Tensor:
        """Return D at ``time``, shape ``[d]``."""
        return self._stepper.offset(time)

    def rate(self, time: float) -> Tensor:
        """Return D' at ``time``, shape ``[d]``."""
        return self._stepper.rate(time)

    def hint(self, lambda_max: float | None) -> None:
        """Take in λ_max as a probe found it."""
        self._stepper.spectral.hint(lambda_max)

    def error(self, foresight: float) -> float:
        """Return the error bar: of D, and of P at the run's own time."""
        self._bar.at(self.path.time + self.path.step_size)
        return self._bar.value + foresight

    def hand_over(self) -> Tensor | None:
        """Return an error as long as the bar, pointing as it does by estimate, shape ``[d]``."""
        self._bar.at(self.path.time + self.path.step_size)
        return self._bar.hand_over()

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on, as tensors, numbers, strings and lists."""
        return {
            "feed": self.name,
            "path": self.path.state_dict(),
            "stepper": self._stepper.state_dict(),
            "bar": self._bar.state_dict(),
            "loss_at": list(self.loss_at),
            "node_loss": self.known_loss[1],
        }

    @classmethod
    def resumed(
        cls, field: FlowField, path: Path, saved: Mapping[str, Any], like: Tensor
    ) -> SmoothFeed:
        """Return the feed that was saved; ``path`` is resumed already."""
        stepper = DefectStepper.resumed(field, saved["stepper"], like)
        bar = _bar(field, stepper.left)
        bar.load_state_dict(saved["bar"])
        self = cls(field, path, stepper, bar)
        time, loss, rate = saved["loss_at"]
        self.loss_at, self.known_loss = (time, loss, rate), (stepper.left.state, saved["node_loss"])
        return self


def _bar(field: FlowField, node: Node) -> DefectBar:
    errors = FlowField(field.flow, field.objective, "error")
    return DefectBar(errors, node, narrow(field.objective.layout))
