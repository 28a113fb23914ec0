"""The stepper interface: one live solver, advanced one step at a time, never restarted.

`shadow.py` drives a stepper and reads its dense output; `error_bar.py` reads what each step got
wrong. Times are floats; states are flat vectors of shape ``[d]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from torch_gfshadow._blocks import Stretch, Terms
from torch_gfshadow._kinks import Glance


class Field(Protocol):
    """The right-hand side F of θ' = F(θ), autonomous; every call is one counted evaluation."""

    def __call__(self, theta: Tensor) -> Tensor:
        """Return F(θ), shape ``[d]``, in the state's dtype."""
        ...


@runtime_checkable
class AveragingField(Field, Protocol):
    """A right-hand side that knows its own kinks."""

    @property
    def kinked(self) -> bool:
        """Whether there are any."""
        ...

    def averaged(self, theta: Tensor, entered: Tensor) -> Tensor:
        """Return F(θ) with the slopes of its activations averaged over a stretch of the path.

        The stretch has its middle at ``theta`` and begins at ``entered``.
        """
        ...


@runtime_checkable
class WatchedField(AveragingField, Protocol):
    """A right-hand side that shows its kinks as it averages."""

    def watched(self, theta: Tensor, entered: Tensor, glance: Glance) -> Tensor:
        """Return what :meth:`averaged` does; ``glance`` looks on, and may reverse a side."""
        ...


def averaged_over(field: AveragingField, theta: Tensor, entered: Tensor, glance: Glance) -> Tensor:
    """Return F(θ) averaged over a stretch, under the eyes of ``glance`` where the field can."""
    if isinstance(field, WatchedField):
        return field.watched(theta, entered, glance)
    return field.averaged(theta, entered)


@runtime_checkable
class AddingField(Field, Protocol):
    """A right-hand side that adds to a vector in place, where F itself is never stored."""

    def add_to(self, out: Tensor, theta: Tensor, weight: float) -> None:
        """Add ``weight``·F(θ) to ``out``."""
        ...

    def write(self, out: Tensor, theta: Tensor) -> None:
        """Set ``out`` to F(θ), and remember what :meth:`__call__` does."""
        ...


@runtime_checkable
class StretchingField(AveragingField, AddingField, Protocol):
    """A right-hand side that does both."""

    def write_averaged(self, out: Tensor, stretch: Stretch, glance: Glance | None = None) -> None:
        """Set ``out`` to what :meth:`averaged` returns on ``stretch``, and remember as it does.

        ``glance`` looks on as in :class:`WatchedField`.
        """
        ...


def remembers(field: Field) -> bool:
    """Say whether states hold velocities or running means, so that the spectrum is not real."""
    return bool(getattr(field, "remembers", False))


def add_field(field: Field, out: Tensor, theta: Tensor, weight: float) -> None:
    """Add ``weight``·F(θ) to ``out``, in place where the field can."""
    if isinstance(field, AddingField):
        field.add_to(out, theta, weight)
    else:
        out.add_(field(theta), alpha=weight)


@dataclass(frozen=True, slots=True)
class Node:
    """A point of the numerical solution: time, state θ̃ and field F(θ̃)."""

    time: float
    state: Tensor
    field: Tensor

    def shifted(self, offset: Tensor, scale: float) -> Tensor:
        """Return θ̃ + scale·offset, a new vector."""
        return torch.add(self.state, offset, alpha=scale)

    def state_dict(self) -> dict[str, Any]:
        """Return the node as tensors and numbers."""
        return {"time": self.time, "state": self.state, "field": self.field}

    @classmethod
    def from_state(cls, saved: Mapping[str, Any], like: Tensor | None = None) -> Node:
        """Return the node that was saved, on the device and in the dtype of ``like``."""
        state, field = saved["state"], saved["field"]
        if like is not None:
            state, field = state.to(like), field.to(like)
        return cls(float(saved["time"]), state, field)


@runtime_checkable
class Stepper(Protocol):
    """A solver between two nodes, with dense output in between.

    ``local_error`` is the vector by which the last accepted step is off, to leading order; its
    sum over steps, carried along the flow, is what the error bar is made of. ``None`` right
    after a rejected step, or where the method estimates in windows and none has closed.
    """

    @property
    def name(self) -> str:
        """Name of the solver in use."""
        ...

    @property
    def order(self) -> int:
        """Order of the method on smooth fields."""
        ...

    @property
    def rough(self) -> bool:
        """Whether the method is one for fields with kinks."""
        ...

    @property
    def stability(self) -> float:
        """Length of the real stability interval per step: h·λ beyond it grows."""
        ...

    @property
    def left(self) -> Node:
        """Start of the last accepted step."""
        ...

    @property
    def right(self) -> Node:
        """End of the last accepted step: as far as the solution is known."""
        ...

    @property
    def local_error(self) -> Tensor | None:
        """Vector by which the solution is newly off since the last call of :meth:`step`."""
        ...

    @property
    def ungraded(self) -> float:
        """Norm of the error of recent steps that ``local_error`` does not hold yet."""
        ...

    @property
    def next_step(self) -> float:
        """Size of the next attempt."""
        ...

    @property
    def stiffness(self) -> float | None:
        """Upper estimate of λ_max that the solver works with; ``None`` if it needs none."""
        ...

    def step(
        self,
        tolerance: float,
        shortest: float = 0.0,
        longest: float = math.inf,
        lambda_max: float | None = None,
    ) -> bool:
        """Try one step; say whether it was accepted.

        Args:
            tolerance: Largest 2-norm of the local error.
            shortest: Below this step size, accuracy is given up: only kinks ask for it.
            longest: Upper limit of the step size.
            lambda_max: Largest Hessian eigenvalue last seen by a probe, if any.
        """
        ...

    def interpolate(self, time: float) -> Tensor:
        """Return the solution at ``time`` in ``[left.time, right.time]``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on, as tensors, numbers, strings and lists.

        Tensors are not copied unless the stepper changes them in place; write the state to disk
        with ``torch.save`` and read it with ``torch.load(..., weights_only=True)``.
        """
        ...

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state, bit for bit as the stepper that was saved would have."""
        ...


@runtime_checkable
class Blended(Protocol):
    """A stepper that keeps the solution as a sum of vectors, and makes one of them when asked."""

    def blend(self, time: float) -> Terms:
        """Return the solution at ``time`` as a linear combination."""
        ...

    @property
    def error_terms(self) -> Terms | None:
        """Local error of the last step as a sum; ``None`` where there is none."""
        ...

    def release(self) -> None:
        """Let go of the last step: from here to the end of the next one there is no output."""
        ...


@runtime_checkable
class SelfGrading(Protocol):
    """A stepper that carries its own estimate of how far it is from the exact flow."""

    @property
    def error(self) -> float | None:
        """Error bar in the units of θ; ``None`` while it leaves that to others."""
        ...

    def inherit(self, error: Tensor) -> None:
        """Take over an error bar: a vector as long as the bar, pointing as the error does."""
        ...


@runtime_checkable
class HandingOver(Protocol):
    """A stepper whose own estimate of its error can be taken over by another solver."""

    def hand_over(self) -> Tensor | None:
        """Return an error as long as the bar, pointing as it does by estimate; or ``None``."""
        ...


@runtime_checkable
class Refreshing(Protocol):
    """A stepper that can be told that the field has changed."""

    def shift(self, offset: Tensor) -> None:
        """Move the solution by ``offset``, shape ``[d]``, where it stands."""
        ...

    def refresh(self) -> None:
        """Evaluate the field anew where the solution stands, and go on from there."""
        ...


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """What every solver takes.

    Args:
        rtol: Relative tolerance per step; with ``atol`` it replaces the control by resolution.
        atol: Absolute tolerance per component and step.
        dtype: Dtype of the state. float64 keeps the sum of many small steps exact; the field is
            evaluated in the parameters' own dtype either way.
        max_evals: Most gradient evaluations of the flow per step of the run, on average; beyond
            it the shadow is ``truncated``. ``None`` leaves it, and ``max_burst``, open.
        max_burst: Most of them for one step of the run, and what the solver's step under way still
            takes. A shadow that needs more is ``behind`` and has no number until it has caught up,
            or ``truncated`` if it would need more than four times as much.
    """

    rtol: float | None = None
    atol: float | None = None
    dtype: torch.dtype = torch.float64
    max_evals: float | None = 50.0
    max_burst: float | None = 64.0

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "max_evals", "max_burst"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(
                    f"{name} must be positive, got {value!r}. Leave it out for the default."
                )
        if not self.dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating dtype, got {self.dtype}. Use torch.float64.")

    @property
    def name(self) -> str:
        """Registered name."""
        return type(self).__name__.lower()

    def is_low(self, field: Field, dim: int) -> bool:
        """Say whether states of ``dim`` entries are kept in low storage (see ``low_storage``)."""
        return False

    @property
    def fed(self) -> bool:
        """Whether a smooth run's own gradients may carry the solution (see ``defect``)."""
        return False

    def start(self, field: Field, node: Node, first_step: float) -> Stepper:
        """Return a live stepper at ``node`` whose first attempt has size ``first_step``."""
        raise NotImplementedError

    def resume(self, field: Field, saved: Mapping[str, Any], like: Tensor | None = None) -> Stepper:
        """Return a live stepper that goes on from ``saved``; costs no evaluation.

        Args:
            field: Right-hand side F, the same as when the state was saved.
            saved: What ``state_dict()`` of a stepper of this solver returned.
            like: Where given, a tensor whose device and dtype the state is moved to.
        """
        stepper = self.start(field, Node.from_state(saved["right"], like), 1.0)
        stepper.load_state_dict(saved)
        return stepper

    def tolerance(self, node: Node) -> float | None:
        """Return the tolerance that ``rtol`` and ``atol`` ask for at ``node``, if they are set."""
        if self.rtol is None and self.atol is None:
            return None
        return self.asked(node.state.numel(), float(node.state.norm()))

    def asked(self, entries: int, size: float) -> float | None:
        """Return what :meth:`tolerance` does of a state with so many entries, of this norm."""
        if self.rtol is None and self.atol is None:
            return None
        return (self.atol or 0.0) * math.sqrt(entries) + (self.rtol or 0.0) * size


def hermite(left: Node, right: Node, time: float) -> Tensor:
    """Return the cubic Hermite interpolant through two nodes at ``time``, error O(h⁴)."""
    h = right.time - left.time
    if h == 0.0:
        return right.state
    s = (time - left.time) / h
    out = left.state * ((1 + 2 * s) * (1 - s) ** 2)
    out.add_(left.field, alpha=h * s * (1 - s) ** 2)
    out.add_(right.state, alpha=s * s * (3 - 2 * s))
    out.add_(right.field, alpha=h * s * s * (s - 1))
    return out


def check_saved(name: str, saved: Mapping[str, Any]) -> None:
    """Refuse a state that another solver saved.

    Raises:
        ValueError: If ``saved`` is not of the solver ``name``.
    """
    if saved.get("solver") != name:
        raise ValueError(
            f"state must be one saved by solver {name!r}, got one of {saved.get('solver')!r}. "
            "Resume with the solver the run was saved with."
        )


def save_plain(source: object, names: Iterable[str]) -> dict[str, Any]:
    """Return the attributes ``names`` of ``source``, keyed without a leading underscore."""
    return {name.lstrip("_"): getattr(source, name) for name in names}


def load_plain(target: object, names: Iterable[str], saved: Mapping[str, Any]) -> None:
    """Set the attributes that :func:`save_plain` saved."""
    for name in names:
        setattr(target, name, saved[name.lstrip("_")])
