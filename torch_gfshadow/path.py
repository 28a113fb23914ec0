"""The path that the run's own field gives: one addition per step, and not one evaluation.

P(t) = θ̃ + ∫ F̂, with F̂ the field at the iterates and linear in between. In step m it goes on by
½η_m(F̂_m + F̂_{m+1}), so the field of step m counts ½(η_{m−1} + η_m). The sum is kept in float32
for a while and then added to a float64 vector; the run itself rounds at every step, and after
10,000 of them that is a third of the discrepancy on the paper's linear network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._tree import Layout
from torch_gfshadow.solvers.base import load_plain, save_plain

_FLUSH = 64
_version = attrgetter("_version")
_PLAIN = ["time", "step_size", "_added", "_undone"]


class Path:
    """P from a point of the flow on.

    Args:
        layout: The run's parameters.
        start: P at ``time``, shape ``[d]``; changed in place from here on.
        coefficients: (a, b) of the field a·∇f + b·θ.

    Attributes:
        time: Flow time of the last step taken in, at its beginning.
        step_size: Its η.
    """

    def __init__(
        self, layout: Layout, start: Tensor, time: float, coefficients: tuple[float, float]
    ) -> None:
        self.time, self.step_size = time, 0.0
        self._layout, self._coefficients = layout, coefficients
        self._sum, self._base = _zeros(layout), start
        self._parts = self._views()
        self._added, self._undone = 0, (time, 0.0, 0.0)
        # F̂ at a step, where it was asked for last: for its slope and for P inside a step
        self._seen: tuple[float, Tensor] | None = None
        self._earlier: tuple[float, Tensor] | None = None  # and before that
        self._used: tuple[list[Tensor], list[int]] | None = None
        self._last: Tensor | None = None

    def _views(self) -> list[Tensor]:
        pieces = torch.split(self._sum, list(self._layout.sizes))
        return [p.view(shape) for p, shape in zip(pieces, self._layout.shapes, strict=True)]

    def field(self, grads: Sequence[Tensor]) -> Tensor:
        """Return F̂ at the parameters as they are, shape ``[d]``, in the dtype of P."""
        return field_of(self._layout, self._coefficients, grads, self._base.dtype)

    def take(self, grads: list[Tensor], time: float, step_size: float) -> None:
        """Go on to ``time``, where a step of ``step_size`` is about to be taken with ``grads``."""
        weight = 0.5 * (self.step_size + step_size)
        versions = list(map(_version, grads))  # of an inference tensor there is none: it raises
        self._add(grads, weight)
        self._undone = self.time, self.step_size, weight
        self.time, self.step_size = time, step_size
        self._used, self._last = (grads, versions), None
        self._added += 1
        if self._added >= _FLUSH:
            self._base.add_(self._sum)
            self._sum.zero_()
            self._added = 0

    def undo(self, grads: list[Tensor]) -> None:
        """Take back the last :meth:`take`, whose step was not taken: ``grads`` are there again."""
        self.time, self.step_size, weight = self._undone
        self._add(grads, -weight)

    def _add(self, grads: list[Tensor], weight: float) -> None:
        a, b = self._coefficients
        torch._foreach_add_(self._parts, grads, alpha=weight * a)
        if b != 0.0:
            here = [p.detach() for p in self._layout.params]
            torch._foreach_add_(self._parts, here, alpha=weight * b)

    def see(self, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return (P, F̂) where the step begins that :meth:`take` is called for next."""
        field = self.field(grads)
        place = self._base + self._sum
        return place.add_(field, alpha=0.5 * self.step_size), field

    def change(self, field: Tensor) -> float:
        """Return how much F̂ has changed over the last step, relative to it; 0 if not known."""
        if self._seen is None or self._seen[0] < self.time:
            return 0.0
        return change(field, self._seen[1])

    def jump(self, field: Tensor) -> float:
        """Return how far P was off at the run's own time without F̂; 0 if not known."""
        if self._seen is None or self._seen[0] < self.time:
            return 0.0
        return 0.5 * self.step_size * float(torch.linalg.vector_norm(field - self._seen[1]))

    def remember(self, time: float, field: Tensor) -> None:
        """Keep F̂ of a step, to tell its slope by."""
        if self._seen is not None and self._seen[0] < time:
            self._earlier = self._seen
        self._seen = time, field

    def back(
        self, place: Tensor, field: Tensor, time: float, earlier: float
    ) -> tuple[Tensor, Tensor]:
        """Return (P, F̂) at ``earlier``, a moment inside the step that ended at ``time``.

        Args:
            place: P at ``time``, from :meth:`see`.
            field: F̂ there.
            time: Where the step ended.
            earlier: The moment asked for.
        """
        span = time - earlier
        if span <= 0.0 or self._seen is None:
            return place - span * field, field
        slope = (field - self._seen[1]) / (time - self._seen[0])
        then = field - span * slope
        return place - span * field + (0.5 * span * span) * slope, then

    def ahead(self, time: float, *, level: bool = False) -> tuple[Tensor, Tensor]:
        """Return (P, F̂) at ``time``, up to the end of the step taken in last.

        F̂ there is not known before the run's next gradient is; it is continued on the straight
        line through the last two that were looked at, or as it is where it jumps up and down.

        Args:
            time: The moment asked for.
            level: Whether to continue it as it is.
        """
        field = self._latest()
        tau = time - self.time
        place = (self._base + self._sum).sub_(field, alpha=0.5 * self.step_size)
        slope, seen = None, None if level else self._seen
        if seen is not None and seen[0] >= self.time:
            seen = self._earlier
        if seen is not None:
            slope = (field - seen[1]) / (self.time - seen[0])
        place.add_(field, alpha=tau)
        if slope is None:
            return place, field
        return place.add_(slope, alpha=0.5 * tau * tau), torch.add(field, slope, alpha=tau)

    def unsure(self, size: float) -> Tensor | None:
        """Return a vector of length ``size`` along the change of F̂, which :meth:`ahead` guesses."""
        if self._seen is None:
            return None
        turn = self._seen[1] if self._earlier is None else self._seen[1] - self._earlier[1]
        norm = float(torch.linalg.vector_norm(turn))
        return turn * (size / norm) if norm > 0.0 else None

    def shift(self, offset: Tensor) -> None:
        """Move P by ``offset``, shape ``[d]``, for good."""
        self._base.add_(offset)

    def _latest(self) -> Tensor:
        """Return F̂ of the step taken in last, from its gradients while they are as they were."""
        if self._last is None and self._used is not None:
            grads, versions = self._used
            there = zip(self._layout.params, grads, versions, strict=True)
            if all(p.grad is g and g._version == v for p, g, v in there):
                b = self._coefficients[1]
                # θ has moved on by η·F̂ since
                self._last = self.field(grads).div_(1.0 + b * self.step_size)
        if self._last is not None:
            return self._last
        # the user has the next gradients already: half a step of an older F̂ has to do
        assert self._seen is not None
        return self._seen[1]

    def state_dict(self) -> dict[str, Any]:
        """Return all that the path depends on, as tensors and numbers."""
        return save_plain(self, _PLAIN) | {
            "sum": self._sum.clone(),
            "base": self._base.clone(),
            "seen": None if self._seen is None else list(self._seen),
            "earlier": None if self._earlier is None else list(self._earlier),
            "last": None if self._seen is None else self._latest(),
        }

    @classmethod
    def resumed(
        cls, layout: Layout, saved: Mapping[str, Any], coefficients: tuple[float, float]
    ) -> Path:
        """Return the path that was saved."""
        base = saved["base"].to(layout.device, copy=True)
        self = cls(layout, base, 0.0, coefficients)
        load_plain(self, _PLAIN, saved)
        self._sum.copy_(saved["sum"])
        if saved["seen"] is not None:
            self._seen = float(saved["seen"][0]), saved["seen"][1].to(base)
            self._last = saved["last"].to(base)
        if saved["earlier"] is not None:
            self._earlier = float(saved["earlier"][0]), saved["earlier"][1].to(base)
        return self


def field_of(
    layout: Layout, coefficients: tuple[float, float], grads: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """Return a·∇f + b·θ at the parameters as they are, shape ``[d]``."""
    a, b = coefficients
    out = layout.flatten(grads, dtype).mul_(a)
    return out.add_(layout.current(dtype), alpha=b) if b != 0.0 else out


def change(now: Tensor, before: Tensor) -> float:
    """Return ‖now − before‖ / ‖before‖."""
    size = float(torch.linalg.vector_norm(before))
    return float(torch.linalg.vector_norm(now - before)) / size if size > 0.0 else math.inf


def _zeros(layout: Layout) -> Tensor:
    wide = torch.promote_types(layout.dtype, torch.float32)
    return torch.zeros(layout.dim, dtype=wide, device=layout.device)
