"""Full and low storage: which models it is for, and nodes whose state is a sum of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._blocks import Terms, fill
from torch_gfshadow.solvers.base import Field, Node, SolverConfig, remembers

SMALL = 2_000_000
"""Up to this many parameters copies of them are nothing, and states are float64 vectors."""


def is_large(config: SolverConfig, dim: int) -> bool:
    """Say whether every copy of the ``dim`` parameters counts, or the solver was told that."""
    return dim > SMALL or getattr(config, "storage", "auto") == "low"


@dataclass(frozen=True, kw_only=True)
class StoredConfig(SolverConfig):
    """A solver that has a low-storage form.

    Args:
        storage: ``"full"`` keeps states of ``dtype``; ``"low"`` a displacement in the parameters'
            own dtype, at most eight copies of the parameters for the whole shadow instead of
            thirty; ``"auto"`` is low beyond two million parameters.
    """

    storage: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.storage not in ("auto", "low", "full"):
            raise ValueError(
                f"storage must be 'auto', 'low' or 'full', got {self.storage!r}. "
                "Leave it out for the default."
            )

    def is_low(self, field: Field, dim: int) -> bool:
        """Say whether states of ``dim`` entries are kept in low storage; gradient flows only."""
        if remembers(field):
            return False
        return self.storage == "low" or (self.storage == "auto" and dim > SMALL)


class Summed(Node):
    """A node whose state is a sum of vectors, made when it is asked for."""

    __slots__ = ("terms",)
    terms: Terms

    def __init__(self, time: float, terms: Terms, field: Tensor) -> None:
        for name, value in (("time", time), ("terms", terms), ("field", field)):
            object.__setattr__(self, name, value)

    @property
    def state(self) -> Tensor:
        """θ̃, a new vector."""
        return fill(torch.empty_like(self.field), self.terms)

    def shifted(self, offset: Tensor, scale: float) -> Tensor:
        """Return θ̃ + scale·offset, and make no other vector."""
        return fill(torch.empty_like(self.field), [*self.terms, (offset, scale)])


class Displaced(Node):
    """A node whose state is the sum of two vectors, made when it is asked for."""

    __slots__ = ("base", "moved")
    base: Tensor
    moved: Tensor

    def __init__(self, time: float, base: Tensor, moved: Tensor, field: Tensor) -> None:
        for name, value in (("time", time), ("base", base), ("moved", moved), ("field", field)):
            object.__setattr__(self, name, value)

    @property
    def state(self) -> Tensor:
        """θ̃, a new vector."""
        return self.base + self.moved

    def shifted(self, offset: Tensor, scale: float) -> Tensor:
        """Return θ̃ + scale·offset, and make no other vector."""
        return torch.add(self.base, self.moved).add_(offset, alpha=scale)

    def state_dict(self) -> dict[str, Any]:
        """Return the node as tensors and numbers."""
        base = {"time": self.time, "state": self.base, "field": self.field}
        return base | {"moved": self.moved.clone()}  # it is changed in place


def start_of(node: Node) -> tuple[Tensor, Tensor]:
    """Return where ``node`` stands as a vector that is kept and one that may be changed."""
    if isinstance(node, Displaced):
        return node.base, node.moved
    return node.state, torch.zeros_like(node.state)
