"""The flow interface: which differential equation the optimizer is a discretisation of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from torch_gfshadow._tree import Layout

ParamGroups = Sequence[Mapping[str, Any]]


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
