"""Midpoints in few vectors: what ``midpoints`` does, for models of which every copy counts.

The shadow is start + displacement, the coarse solution its distance from that, all in the
parameters' own dtype: float32 rounds a displacement to 6e-8 of the distance travelled. Beside them
there are the increments of both over a piece, two slopes, and one vector that lends the model its
parameters. In copies: 8 at the peak, the start among them (7 where the piece is one step), one more
where the model has kinks, and the largest layer's gradient; 3 at rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_gfshadow._blocks import Stretch, Terms, blocks, combined, fill, length_of
from torch_gfshadow._plain import load_attributes, saved_attributes
from torch_gfshadow.flows.gradient_flow import sliced
from torch_gfshadow.midpoints import Facts, PieceField

_STATE = ("_base", "_moved", "_apart")


class LowCrossing(NamedTuple):
    """The increments of both solutions over a piece."""

    start: LowPair
    fine: Tensor
    coarse: Tensor
    facts: Facts

    @property
    def gap(self) -> float:
        """Distance of the two solutions."""
        return length_of([(self.fine, 1.0), (self.coarse, -1.0), *self.start.apart])

    @property
    def added(self) -> float:
        """What the piece has added to their difference."""
        return length_of([(self.fine, 1.0), (self.coarse, -1.0)])

    @property
    def size(self) -> float:
        """‖θ̃‖."""
        return length_of(self.terms)

    @property
    def extent(self) -> tuple[int, float]:
        """Number of entries of the state, and its norm."""
        return self.fine.numel(), self.size

    @property
    def terms(self) -> Terms:
        """θ̃ as a sum."""
        return [*self.start.terms, (self.fine, 1.0)]


class LowPair:
    """Two solutions of the flow of a field a·∇f + b·θ, as increments.

    Args:
        start: θ where both begin, shape ``[d]``; kept, not copied.
    """

    def __init__(self, start: Tensor) -> None:
        self._base = start
        self._moved: Tensor | None = None
        # fine solution minus coarse one
        self._apart: Tensor | None = None

    @property
    def apart(self) -> Terms:
        """Fine solution minus coarse one, as a sum."""
        return [] if self._apart is None else [(self._apart, 1.0)]

    @property
    def gap(self) -> float:
        """Distance of the two solutions."""
        return length_of(self.apart) if self.apart else 0.0

    @property
    def size(self) -> float:
        """‖θ̃‖."""
        return length_of(self.terms)

    @property
    def grain(self) -> float:
        """What rounding may change of the displacement when it is stored."""
        if self._moved is None:
            return 0.0
        return torch.finfo(self._moved.dtype).eps * length_of([(self._moved, 1.0)])

    @property
    def terms(self) -> Terms:
        """θ̃ as a sum."""
        moved = [] if self._moved is None else [(self._moved, 1.0)]
        return [(self._base, 1.0), *moved]

    def cross(
        self, field: PieceField, span: float, steps: int, known: tuple[float, Tensor] | None
    ) -> LowCrossing:
        """Follow ``field`` as in :class:`..midpoints.Pair`."""
        h = span / steps
        ours: Tensor | None = None
        theirs: Tensor | None = None
        slope = None if known is None else field.remember(known[0], self._base, known[1])
        for left in reversed(range(steps)):
            fine = [*self.terms, *_once(ours)]
            coarse = [*self.terms, *((v, -w) for v, w in self.apart), *_once(theirs)]
            first = _slope(field, coarse) if slope is None else slope
            slope = None
            step = _midpoint(field, coarse, [(first, 0.5 * h)]).mul_(h)
            theirs = step if theirs is None else theirs.add_(step)
            del step
            early = _midpoint(field, fine, [(first, 0.25 * h)])
            there = [*fine, (early, 0.5 * h)]
            way = [(early, 0.5 * h), (first, -0.25 * h)]
            if field.kinked:
                late, middle = _midpoint(field, there, way), [*there, *way]
            else:  # the first slope gives its place to the last one
                point = fill(torch.empty_like(first), [*there, *way])
                late, middle = first, [(point, 1.0)]
                field.write(late, point)
                del point
            if not left:
                facts = _facts(field, fine, middle, (early, late), h)
            del first, there, way, middle
            step = early.add_(late).mul_(0.5 * h)
            ours = step if ours is None else ours.add_(step)
            del early, late, step
        assert ours is not None
        assert theirs is not None
        return LowCrossing(self, ours, theirs, facts)

    def arrive(self, end: LowCrossing) -> None:
        """Go on from the end of a piece, whose vectors are used up."""
        if self._moved is None or self._apart is None:
            self._moved, self._apart = end.fine, end.coarse.neg_().add_(end.fine)
            return
        for at in blocks(self._moved.numel()):
            there = self._moved[at] + end.fine[at]
            # what was added, rounded
            self._apart[at] += (there - self._moved[at]).sub_(end.coarse[at])
            self._moved[at] = there

    def state_dict(self) -> dict[str, Any]:
        """Return both solutions as plain values; copies of what changes in place."""
        saved = saved_attributes(self, _STATE)
        return {k: v.clone() if k != "base" and v is not None else v for k, v in saved.items()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        load_attributes(self, _STATE, saved)
        self._moved, self._apart = (None if v is None else v.clone() for v in self._both)

    @property
    def _both(self) -> tuple[Tensor | None, Tensor | None]:
        return self._moved, self._apart


def _once(vector: Tensor | None) -> Terms:
    return [] if vector is None else [(vector, 1.0)]


def _slope(field: PieceField, at: Terms) -> Tensor:
    """Return F at a point."""
    out = torch.empty_like(at[0][0])
    field.write(out, fill(torch.empty_like(out), at))
    return out


def _midpoint(field: PieceField, start: Terms, way: Terms) -> Tensor:
    """Return F at the end of ``way``, averaged over that and as far again where it kinks."""
    if not field.kinked:
        return _slope(field, [*start, *way])
    out = torch.empty_like(start[0][0])
    field.write_averaged(out, Stretch([*start, *way], start))
    return out


def _facts(
    field: PieceField, fine: Terms, middle: Terms, slopes: tuple[Tensor, Tensor], h: float
) -> Facts:
    """Return what :meth:`..midpoints.FullPair.cross` finds at the end of its last step.

    Args:
        field: Evaluated last at ``middle``.
        fine: Where the two half-steps of the fine solution began.
        middle: Middle of the second one.
        slopes: Those of both.
        h: The coarse step.
    """
    early, late = slopes
    ahead = [*fine, (early, 0.5 * h), (late, 0.5 * h), *((v, -w) for v, w in middle)]
    bent = [(late, 1.25), (early, -0.25)]
    # θ where the two gradients were taken, weighted alike
    place = [*((v, 1.5 * w) for v, w in middle), *((v, -0.5 * w) for v, w in fine)]
    place.append((early, -0.25 * h))
    loss = field.loss
    for piece, a, b in sliced(field.pieces):
        if a == 0.0:
            continue
        turned = [*bent, *((v, -b * w) for v, w in place)] if b != 0.0 else bent
        for at in blocks(piece.stop, piece.start):
            both = combined(turned, at), combined(ahead, at)
            loss += float(torch.dot(*both)) / (field.factor * a)
    speed = length_of([(late, 1.0)])
    turned_by = length_of([(late, 1.0), (early, -1.0)])
    return Facts(loss, speed, turned_by / max(0.5 * h * speed, 1e-300))
