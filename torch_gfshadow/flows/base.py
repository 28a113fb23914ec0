"""The flow interface: which differential equation the optimizer is a discretisation of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from torch_gfshadow._tree import Layout

ParamGroups = Sequence[Mapping[str, Any]]
OptimizerState = Mapping[Any, Mapping[str, Any]]


@runtime_checkable
class Flow(Protocol):
    """θ' = F(θ), with F made of the objective's gradient."""

    name: str

    def configure(self, groups: ParamGroups, layout: Layout) -> bool:
        """Read the optimizer's hyperparameters; say whether F changed since the last call."""
        ...

    def field(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Return F(θ), given ∇f(θ), shape ``[d]``, in the dtype of ``theta``."""
        ...

    def step_size(self, groups: ParamGroups) -> float:
        """Return the flow time η that one step of the optimizer takes.

        Raises:
            FlowError: If the groups have no common clock.
        """
        ...


@runtime_checkable
class FlowWithMemory(Flow, Protocol):
    """A flow whose state holds more than θ: velocities, running means. θ comes first."""

    def lift(self, theta: Tensor, grad: Tensor, state: OptimizerState, layout: Layout) -> Tensor:
        """Return the state the optimizer is in at ``theta``.

        Args:
            theta: Shape ``[d]``.
            grad: ∇f(θ), shape ``[d]``.
            state: The optimizer's own, by parameter; empty before its first step.
            layout: Order of the parameters.
        """
        ...

    def position(self, state: Tensor) -> Tensor:
        """Return the θ of a state, shape ``[d]``, or the rate of change of θ in F(state)."""
        ...


@runtime_checkable
class PacedFlow(FlowWithMemory, Protocol):
    """A flow whose memory is counted in steps, at a pace that schedules change.

    Attributes:
        pace: Numbers ≥ 0 that hold for one step, as last read: the rate, what means forget.
        fixed: What else makes the field; a change of it is another field.
    """

    pace: tuple[float, ...]

    @property
    def fixed(self) -> tuple[Any, ...]:
        """See the class."""
        ...

    def span(self, pace: tuple[float, ...]) -> float:
        """Return the flow time η that a step at this pace takes."""
        ...

    def by_step(self, state: Tensor, grad: Tensor, pace: tuple[float, ...]) -> Tensor:
        """Return the rate of change of the state per step, not per flow time."""
        ...


def position(flow: Flow, state: Tensor) -> Tensor:
    """Return the θ of a state of ``flow``, shape ``[d]``."""
    return flow.position(state) if isinstance(flow, FlowWithMemory) else state


def lifted(
    flow: Flow, theta: Tensor, grad: Tensor, state: OptimizerState, layout: Layout
) -> Tensor:
    """Return the state of ``flow`` that stands for the optimizer's at ``theta``."""
    if isinstance(flow, FlowWithMemory):
        return flow.lift(theta, grad, state, layout)
    return theta
