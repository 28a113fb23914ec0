"""One piece of a flow, crossed by midpoint steps twice: coarsely, and with half the step.

Read next: ``low_midpoints``, the same for models of which every copy counts, and ``piecewise``,
which carries both solutions from piece to piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torch_gfshadow._blocks import Pieces, Terms
from torch_gfshadow._plain import load_attributes, saved_attributes
from torch_gfshadow.flows.base import position
from torch_gfshadow.shadow import FlowField
from torch_gfshadow.sides import Branching, followed
from torch_gfshadow.solvers.storage import SMALL

EVALS = 4
"""Gradients that one midpoint step of the coarse solution costs, with its two of the fine one;
more where entries are held at kinks."""
_LEAST = 1e-3
"""Of the way of a step: what the two solutions are taken to be apart before they are."""


class PieceField(FlowField):
    """A field that remembers the last gradient, too."""

    grad: Tensor

    def remember(self, loss: float, state: Tensor, grad: Tensor) -> Tensor:
        """Return F from a gradient that is known."""
        self.grad = grad
        return super().remember(loss, state, grad)

    def midpoint(self, state: Tensor, h: float, slope: Tensor) -> Tensor:
        """Return the slope of the step ``h``, half of it ahead along ``slope``."""
        middle = torch.add(state, slope, alpha=0.5 * h)
        return self.averaged(middle, state) if self.kinked else self(middle)

    @property
    def paid(self) -> bool:
        """Whether more than :data:`EVALS` may be spent: no ``budget=`` has to pay for it."""
        return self.objective.ledger.afford is None

    @property
    def pieces(self) -> Pieces:
        """Size, a and b of every parameter in F(θ) = a·∇f(θ) + b·θ."""
        known = self._coefficients
        assert known is not None
        return known


class Facts(NamedTuple):
    """Loss at the end of a piece; speed and curvature of the fine solution there."""

    loss: float
    speed: float
    curvature: float


class Crossing(Protocol):
    """The end of a piece, not yet arrived at."""

    @property
    def facts(self) -> Facts:
        """What is known of the end."""
        ...

    @property
    def gap(self) -> float:
        """Distance of the two solutions."""
        ...

    @property
    def added(self) -> float:
        """What the piece has added to their difference."""
        ...

    @property
    def size(self) -> float:
        """‖θ̃‖."""
        ...

    @property
    def extent(self) -> tuple[int, float]:
        """Number of entries of the state, and its norm."""
        ...

    @property
    def terms(self) -> Terms:
        """θ̃ as a sum."""
        ...


class Pair(Protocol):
    """Two solutions of one flow: the fine one, which is the shadow, and a coarse one beside it."""

    @property
    def gap(self) -> float:
        """Their distance."""
        ...

    @property
    def size(self) -> float:
        """‖θ̃‖."""
        ...

    @property
    def grain(self) -> float:
        """What rounding may change of θ̃ when it is stored."""
        ...

    @property
    def terms(self) -> Terms:
        """θ̃ as a sum of vectors, each of shape ``[d]``."""
        ...

    def cross(
        self, field: PieceField, span: float, steps: int, known: tuple[float, Tensor] | None
    ) -> Crossing:
        """Follow ``field`` for the time ``span`` from both solutions; they stay where they are.

        Args:
            field: The piece's own.
            span: Flow time, > 0.
            steps: Of the coarse solution, the fine one takes twice as many; each costs
                :data:`EVALS` evaluations.
            known: ``(f, ∇f)`` at the start, if it is known and both start there.
        """
        ...

    def arrive(self, end: Any) -> None:
        """Go on from the end of a piece."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return both solutions as plain values."""
        ...

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        ...


class FullCrossing(NamedTuple):
    """Both solutions at the end of a piece, ``apart`` being their difference where it began."""

    fine: Tensor
    coarse: Tensor
    apart: Tensor
    dim: int
    facts: Facts

    @property
    def gap(self) -> float:
        """Distance of the two solutions."""
        return _norm((self.fine - self.coarse)[: self.dim])

    @property
    def added(self) -> float:
        """What the piece has added to their difference."""
        return _norm((self.fine - self.coarse - self.apart)[: self.dim])

    @property
    def size(self) -> float:
        """‖θ̃‖."""
        return _norm(self.fine[: self.dim])

    @property
    def extent(self) -> tuple[int, float]:
        """Number of entries of the state, and its norm."""
        return self.fine.numel(), _norm(self.fine)

    @property
    def terms(self) -> Terms:
        """θ̃ as a sum."""
        return [(self.fine[: self.dim], 1.0)]


class FullPair:
    """Both solutions as whole states.

    Args:
        state: Where they start: θ, shape ``[d]``, or the lifted state of a flow with memory.
        dim: d.
    """

    _state = ("_fine", "_coarse")

    def __init__(self, state: Tensor, dim: int) -> None:
        self._fine = self._coarse = state
        self._dim = dim

    @property
    def gap(self) -> float:
        """Distance of the two solutions."""
        return _norm((self._fine - self._coarse)[: self._dim])

    @property
    def size(self) -> float:
        """‖θ̃‖."""
        return _norm(self._fine[: self._dim])

    @property
    def grain(self) -> float:
        """What rounding may change of θ̃ when it is stored."""
        return torch.finfo(self._fine.dtype).eps * self.size

    @property
    def terms(self) -> Terms:
        """θ̃ as a sum."""
        return [(self._fine[: self._dim], 1.0)]

    def cross(
        self, field: PieceField, span: float, steps: int, known: tuple[float, Tensor] | None
    ) -> FullCrossing:
        """Follow ``field`` as in :class:`Pair`."""
        fine, coarse, h = self._fine, self._coarse, span / steps
        slope = None if known is None else field.remember(known[0], fine, known[1])
        sided = field.kinked and field.paid and fine.numel() <= SMALL
        branching = Branching()
        for _ in range(steps):
            # the coarse solution's slope shows the fine one the way, too: what it is off enters
            # by h²
            first = field(coarse) if slope is None else slope
            if sided:
                apart = max(_norm(fine - coarse), _LEAST * h * _norm(first))
                whole, theirs = followed(field, coarse, h, first, apart)
                early, ours = followed(field, fine, 0.5 * h, first, apart, theirs)
                before, sides = field.grad, (theirs, ours)
                whole = branching.taken(field, coarse, h, first, whole, sides, apart)
            else:
                whole = field.midpoint(coarse, h, first)
                early = field.midpoint(fine, 0.5 * h, first)
                before = field.grad
            coarse = torch.add(coarse, whole, alpha=h)
            fine = torch.add(fine, early, alpha=0.5 * h)
            onward = 2.0 * early - first
            middle = torch.add(fine, onward, alpha=0.25 * h)
            if sided:
                late, _ = followed(field, fine, 0.5 * h, onward, apart)
            else:
                late = field.midpoint(fine, 0.5 * h, onward)
            fine = torch.add(fine, late, alpha=0.5 * h)
            slope = None
        # Taylor's formula from the last midpoint; the gradient turns half as much again until
        # the end
        ahead = position(field.flow, fine - middle).to(field.grad.dtype)
        bent = torch.add(field.grad, field.grad - before, alpha=0.25)
        turned, speed = (_norm(position(field.flow, slopes)) for slopes in (late - early, late))
        loss = field.loss + float(torch.dot(bent, ahead))
        facts = Facts(loss, speed, turned / max(0.5 * h * speed, 1e-300))
        return FullCrossing(fine, coarse, self._fine - self._coarse, self._dim, facts)

    def arrive(self, end: FullCrossing) -> None:
        """Go on from the end of a piece."""
        self._fine, self._coarse = end.fine, end.coarse

    def state_dict(self) -> dict[str, Any]:
        """Return both solutions as plain values."""
        return saved_attributes(self, self._state)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        load_attributes(self, self._state, saved)


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))
