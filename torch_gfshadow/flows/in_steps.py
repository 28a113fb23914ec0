"""A flow with memory by steps of the optimizer, not by flow time, at a pace that schedules set."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._tree import Layout
from torch_gfshadow.flows.base import FlowWithMemory, OptimizerState, PacedFlow
from torch_gfshadow.flows.pace import EDGE, Pace

_TICK = 1e-12
"""What a step adds to the last entry of the state, which counts them: no norm feels it."""


class InSteps(FlowWithMemory):
    """A paced flow by steps: its state is longer by one entry, the time.

    Attributes:
        edge: Step count at which the solver's present step ends because the pace jumps there.
    """

    def __init__(self, flow: PacedFlow, pace: Pace, origin: float) -> None:
        self.name, self.flow, self.pace, self.origin = flow.name, flow, pace, origin
        self.smooth = bool(getattr(flow, "smooth", True))
        self.edge = math.inf

    def field(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Return F by steps, at the pace of the step the state is in."""
        step = self.origin + float(theta[-1]) / _TICK
        numbers = self.pace.at(min(step, self.edge - 2.0 * EDGE))
        rates = self.flow.by_step(theta[:-1], grad, numbers)
        return torch.cat([rates, rates.new_full((1,), _TICK)])

    def position(self, state: Tensor) -> Tensor:
        """Return θ of a state."""
        return self.flow.position(state[:-1])

    def configure(self, groups: Any, layout: Layout) -> bool:
        """Nothing changes: the pace is told, and another field is another flow."""
        return False

    def step_size(self, groups: Any) -> float:
        """Return 1: a step is a step."""
        return 1.0

    def lift(self, theta: Tensor, grad: Tensor, state: OptimizerState, layout: Layout) -> Tensor:
        """Return the state: it is one already."""
        return theta
