"""adams2 in six and a half vectors: the same two solutions, for models where copies count.

The finer solution is kept as start + displacement, as in ``low_storage``, the companion as its
distance from it; both distances and the finer solution's two slopes in the parameters' own dtype.
What is small beside them need not be exact, and three digits in bfloat16 are enough: the
companion's slopes, as differences from the finer ones, and the second-order part of the last
increment, from which the dense output and the companion's own progress are told. Rounded so, they
shift the error bar by a few thousandths of a step's local change, and the solution not at all.

While a step is computed the older slope's place takes the new one, and one vector lends the model
its parameters. In copies of the parameters: 7½ and the largest layer's gradient at the peak, 6½ at
rest, both with the start.

Source: as ``adams``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._blocks import Stretch, Terms, blocks, combined, fill, length_of, widened
from torch_gfshadow._kinks import Glance
from torch_gfshadow.solvers.adams import AdamsStepper, safety_of
from torch_gfshadow.solvers.base import (
    AddingField,
    AveragingField,
    Field,
    Node,
    Stepper,
    StretchingField,
    averaged_over,
    check_saved,
    load_plain,
    save_plain,
)
from torch_gfshadow.solvers.branches import Branches
from torch_gfshadow.solvers.glances import Steer
from torch_gfshadow.solvers.storage import Displaced, StoredConfig, Summed, start_of

_SHORT = torch.bfloat16
_PLAIN = ("ungraded", "next_step", "_increment", "_gap", "_done", "_last_step", "_last_pair")
_VECTORS = ("_before", "_bend", "_lag", "_turn")


class LowStorageAdams(AdamsStepper):
    """AB2 and its companion on displacements.

    Args:
        field: Right-hand side F.
        node: Where to start; its state is kept, not copied.
        first_step: Size of the first attempt.
    """

    def __init__(self, field: Field, node: Node, first_step: float) -> None:
        self._field = field
        self.local_error, self.ungraded, self.next_step = None, 0.0, first_step
        self._increment = self._gap = self._done = 0.0
        self._safety, self._branches = safety_of(field), Branches()
        self._base, self._moved = start_of(node)
        # finer solution minus companion, where each now stands
        self._apart = torch.zeros_like(self._base)
        # F where the finer solution stands, and one step before
        self._slope = node.field
        self._before: Tensor | None = None
        # the last increment minus h·F at its start
        self._bend: Tensor | None = None
        # of the companion: by how much F of the finer solution at the same time exceeds its own,
        # and by how much its own has changed over its last step
        self._lag: Tensor | None = None
        self._turn: Tensor | None = None
        self._last_step = self._last_pair = 0.0
        self._times = (node.time, node.time)
        self.left = self.right

    @property
    def right(self) -> Node:
        """End of the last step."""
        return Displaced(self._times[1], self._base, self._moved, self._slope)

    @property
    def error_terms(self) -> Terms | None:
        """Nothing: the error bar is this method's own."""
        return None

    def release(self) -> None:
        """Keep the last step: the next one needs it."""

    def inherit(self, error: Tensor) -> None:
        """Take over the error of the solution so far: the companion starts that far away."""
        for at in blocks(self._apart.numel()):
            self._apart[at] += error[at].to(self._apart) / self._safety
        self._gap = length_of([(error, 1.0)]) / self._safety

    def step(
        self,
        tolerance: float,
        shortest: float = 0.0,
        longest: float = math.inf,
        lambda_max: float | None = None,
    ) -> bool:
        """Take one step; after two, lengthen or shorten the next.

        ``tolerance`` is what the error bar may come to, as in :meth:`AdamsStepper.step`.
        """
        h, done, distance = min(self.next_step, longest), self._done, self.distance
        self.left = self.right
        look, steer = self._branches.look(h), self._branches.steer(self._times[1] + h, done + h)
        lag = None
        if done:
            lag = self._close(h, distance, steer)
        else:
            self._open(h)
        slope = self._averaged(self._place(), [(self._slope, -0.5 * h)], look)
        if not _finite(slope):
            self._undo(h, distance)
            self.next_step = 0.1 * h
            return False
        self._before, self._slope = self._slope, slope
        time = self._times[1]
        self._times, self._last_step = (time, time + h), h
        if done:
            # until now it was the excess of the slope before
            if lag is not None:
                self._lag = _short([(lag, 1.0), (slope, 1.0), (self._before, -1.0)])
            self._last_pair, self.ungraded = done + h, 0.0
            self._branches.compare(look, steer, tolerance / max(self._gap, 1e-300))
            self._resize(h, tolerance, shortest, longest)
        else:
            self._done, self.ungraded = h, self._increment
        self._branches.go_on(look, time + h, h)
        self.left = Summed(time, self.blend(time), self._before)
        return True

    def _place(self) -> list[tuple[Tensor, float]]:
        return [(self._base, 1.0), (self._moved, 1.0)]

    def _open(self, h: float) -> None:
        """Go ahead by the first step of a pair."""
        other, weight = self._second(h)
        self._before = None
        bend = torch.empty_like(self._base, dtype=_SHORT)
        for at in blocks(bend.numel()):
            increment = self._increment_at(at, h, other, weight, bend)
            self._apart[at] += self._go(at, increment)
        self._bend = bend

    def _close(self, h: float, distance: float, steer: Steer) -> Tensor | None:
        """Go ahead by the second step of a pair, and by the companion's one.

        Returns:
            By how much the present slope exceeds the companion's at the end of the pair; ``None``
            where the companion has none.
        """
        pair, before = self._done + h, self._before
        assert before is not None
        assert self._bend is not None
        theirs = [(before, pair)] if self._lag is None else [(before, pair), (self._lag, -pair)]
        if self._turn is None:  # Heun, as everywhere at a start
            trial = self._plain([*self._place(), (self._apart, -1.0), *theirs])
            theirs = [(v, 0.5 * w) for v, w in theirs] + [(trial, 0.5 * pair)]
            del trial
        else:
            theirs.append((self._turn, 0.5 * pair**2 / self._last_pair))
        first = [(before, self._done), (self._bend, 1.0)]
        ahead = [(self._slope, 1.0), (before, -1.0)]
        ahead += [] if self._lag is None else [(self._lag, 1.0)]
        excess, bend = (torch.empty_like(self._bend) for _ in range(2))
        other, weight = self._second(h)
        gap = grown = 0.0
        dtype = self._base.dtype
        for at in blocks(bend.numel()):
            increment = self._increment_at(at, h, other, weight, bend)
            its_own = combined(theirs, at, dtype)
            moved = combined(first, at, dtype).add_(increment).sub_(its_own)
            grown += _square(moved)
            self._apart[at] += self._go(at, increment).sub_(its_own)
            gap += _square(self._apart[at])
            excess[at] = combined(ahead, at, dtype)
        self._gap, self._increment = math.sqrt(gap), math.sqrt(grown)
        self._bend, self._before, self._lag, self._turn = bend, None, None, None
        del first, ahead, theirs, other, before
        return self._followed(excess, pair, distance, steer)

    def _followed(
        self, excess: Tensor, pair: float, distance: float, steer: Steer
    ) -> Tensor | None:
        """Evaluate the companion's slope at its new place.

        Args:
            excess: By how much the present slope exceeds the companion's at the start of the pair.
            pair: Length of the pair.
            distance: That of the two solutions before it.
            steer: Pushes the companion.
        """
        half = 0.5 * pair
        entered = [(self._slope, -half), (excess, half)]
        theirs = self._averaged([*self._place(), (self._apart, -1.0)], entered, steer)
        if not _finite(theirs):  # only the longer step leaves: it stays as far away as before
            self._draw_near(distance)
            return None
        lag, turn = torch.empty_like(excess), torch.empty_like(excess)
        for at in blocks(lag.numel()):
            now = self._slope[at] - theirs[at]
            lag[at], turn[at] = now, excess[at] - now
        self._turn = turn
        return lag

    def _draw_near(self, distance: float) -> None:
        """Have the companion start anew, ``distance`` away in the direction it is in."""
        self._apart.mul_(min(1.0, distance / self._gap) if self._gap > 0.0 else 0.0)
        self._gap, self._increment, self._lag, self._turn = distance, 0.0, None, None

    def _undo(self, h: float, distance: float) -> None:
        """Go back to where the step began; what is lost of the past is made up for by Heun."""
        assert self._bend is not None
        back = [(self._slope, -h), (self._bend, -1.0)]
        for at in blocks(self._moved.numel()):
            went = self._go(at, combined(back, at, self._moved.dtype))
            if not self._done:
                self._apart[at] += went
        self._bend, self.left = None, self.right
        if self._done:
            self._draw_near(distance)
            self._done = self.ungraded = 0.0

    def _second(self, h: float) -> tuple[Tensor, float]:
        """Return v and w of the increment h·F + w·(F − v), F being the present slope."""
        if self._before is None:  # Heun, to have a second slope
            return self._plain([*self._place(), (self._slope, h)]), -0.5 * h
        return self._before, 0.5 * h**2 / self._last_step

    def _increment_at(
        self, at: slice, h: float, other: Tensor, weight: float, bend: Tensor
    ) -> Tensor:
        second = (self._slope[at] - other[at]).mul_(weight)
        bend[at] = second
        return second.add_(self._slope[at], alpha=h)

    def _go(self, at: slice, increment: Tensor) -> Tensor:
        """Move by ``increment``; return by how much, which rounding may have changed."""
        there = self._moved[at] + increment
        went = there - self._moved[at]
        self._moved[at] = there
        return went

    def _plain(self, terms: Terms) -> Tensor:
        point = fill(torch.empty_like(self._base), terms)
        if not isinstance(self._field, AddingField):
            return self._field(point)
        out = torch.empty_like(point)
        self._field.write(out, point)
        return out

    def _averaged(self, middle: Terms, back: Terms, glance: Glance) -> Tensor:
        """Return F at ``middle``, averaged over the stretch that begins ``back`` from there."""
        stretch = Stretch(middle, [*middle, *back])
        if isinstance(self._field, StretchingField):
            out = torch.empty_like(self._base)
            self._field.write_averaged(out, stretch, glance)
            return out
        if not isinstance(self._field, AveragingField):
            return self._plain(middle)
        theta, entered = (fill(torch.empty_like(self._base), terms) for terms in stretch)
        return averaged_over(self._field, theta, entered, glance)

    def blend(self, time: float) -> Terms:
        """Return the cubic Hermite interpolant of the last step as a sum."""
        left, right = self._times
        if time >= right or self._before is None or self._bend is None:
            return self._place()
        h = right - left
        s = (time - left) / h
        back = (1 + 2 * s) * (1 - s) ** 2
        slopes = (self._before, h * s * (1 - s) ** 2 - h * back), (self._slope, h * s * s * (s - 1))
        return [*self._place(), (self._bend, -back), *slopes]

    def interpolate(self, time: float) -> Tensor:
        """Return the solution at ``time``, one new vector."""
        return fill(torch.empty_like(self._base), self.blend(time))

    def state_dict(self) -> dict[str, Any]:
        """Return the vectors and the step control as tensors and numbers."""
        return save_plain(self, (*_PLAIN, *_VECTORS)) | {
            "solver": self.name,
            "right": self.right.state_dict(),
            "apart": self._apart.clone(),  # it is changed in place
            "times": list(self._times),
            "branches": self._branches.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        check_saved(self.name, saved)
        load_plain(self, _PLAIN, saved)
        like, (start, end) = self._base, saved["times"]
        self._times = start, end
        self._moved = saved["right"]["moved"].to(like, copy=True)
        self._apart = saved["apart"].to(like, copy=True)
        self._slope = saved["right"]["field"].to(like)
        for name in _VECTORS:
            vector = saved[name.lstrip("_")]
            dtype = like.dtype if name == "_before" else _SHORT
            setattr(self, name, None if vector is None else vector.to(like.device, dtype))
        if "branches" in saved:
            self._branches.load_state_dict(saved["branches"], like)
        self.left = self.right
        if self._before is not None:
            self.left = Summed(start, self.blend(start), self._before)


def _short(terms: Terms) -> Tensor:
    """Return a sum of vectors, rounded once."""
    out = torch.empty_like(terms[0][0], dtype=_SHORT)
    for at in blocks(out.numel()):
        out[at] = combined(terms, at, terms[-1][0].dtype)
    return out


def _square(block: Tensor) -> float:
    wide = widened(block)
    return float(torch.dot(wide, wide))


def _finite(vector: Tensor) -> bool:
    return all(bool(torch.isfinite(vector[at]).all()) for at in blocks(vector.numel()))


@dataclass(frozen=True, kw_only=True)
class Adams2(StoredConfig):
    """Two-step Adams–Bashforth with a companion of twice the step, for fields with kinks."""

    def start(self, field: Field, node: Node, first_step: float) -> Stepper:
        """Return the live method."""
        if self.is_low(field, node.field.numel()):
            return LowStorageAdams(field, node, first_step)
        return AdamsStepper(field, node, first_step)
