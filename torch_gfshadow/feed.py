"""Feed: what carries a fed shadow's solution beside the run, in general.

The run's gradients give the path P (``path``); a feed adds the defect D to it, θ̃ = P + D, and
knows when it has to look at a step to evaluate what comes due. ``fed`` decides when there is one.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from torch_gfshadow.path import Path


class Step(NamedTuple):
    """A step of the run that is looked at, about to be taken.

    Attributes:
        place: P where it begins, shape ``[d]``; what P is moved by is to be added here, too.
        field: The run's field F̂ there, shape ``[d]``.
        time: Flow time there.
        size: Its η.
        scale: The discrepancy last measured.
        target: The error bar aimed at.
    """

    place: Tensor
    field: Tensor
    time: float
    size: float
    scale: float
    target: float


class Seen(NamedTuple):
    """What a feed did with a step.

    Attributes:
        ended: Whether a step of its own ended, so that the discrepancy is worth measuring.
        restless: Whether it cannot go on.
    """

    ended: bool
    restless: bool


class Feed(Protocol):
    """One way of adding the defect to the path."""

    name: str
    path: Path
    loss_at: tuple[float, float, float]
    """A time, f(θ̃) there, and d f/dt."""
    known_loss: tuple[Tensor, float]
    """A point of the flow, shape ``[d]``, and f there."""

    @property
    def due(self) -> float:
        """Time of what has to be evaluated next."""
        ...

    def see(self, step: Step) -> Seen:
        """Evaluate what has come due by the step's beginning."""
        ...

    def state(self, time: float) -> tuple[Tensor, Tensor]:
        """Return θ̃ and the run's field F̂ at ``time``, the run's own."""
        ...

    def offset(self, time: float) -> Tensor:
        """Return D at ``time``, shape ``[d]``."""
        ...

    def rate(self, time: float) -> Tensor:
        """Return D' at ``time``, shape ``[d]``."""
        ...

    def hint(self, lambda_max: float | None) -> None:
        """Take in λ_max as a probe found it."""
        ...

    def error(self, foresight: float) -> float:
        """Return the error bar, given the error of P at the run's own time."""
        ...

    def hand_over(self) -> Tensor | None:
        """Return an error as long as the bar, pointing as it does by estimate, shape ``[d]``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on, as tensors, numbers, strings and lists."""
        ...
