"""Sides: on which side of its kinks a step of a piecewise flow is, entry by entry.

Slopes averaged over a step (``_kinks``) take it that every z goes on as it began. Three things
make that wrong, and two solutions that are carried side by side do not see it, for both err alike:

- A kink that attracts turns z back, and it stays at the kink for the rest of the step. So z is
  looked at again at the end of the step, one forward pass. An entry that has come back is given
  the share of the time at which it would just reach its kink: with z_p the end it set out for and
  z_1 the one that its share s led to, that is s·z_p/(z_p − z_1).
- A kink that repels parts the flow. Where the two solutions stand on different sides of one, each
  takes its own, although they share the slope that shows the way.
- Where both stand on one side of a kink that repels, and nearer to it than they are to each other,
  the flow may be on the other. Then the companion is sent there. If z goes on to that side by
  itself, its distance to us says what the other branch amounts to; if it comes back, so do we.

What a change of shares amounts to is taken from the gradients with respect to z. Derived.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from torch_gfshadow._kinks import Glance
from torch_gfshadow.flows.base import Flow, position
from torch_gfshadow.objective import Objective
from torch_gfshadow.solvers.base import AveragingField

_ROUNDS = 3
"""Most times that a step is taken again to hold entries at their kinks."""
_NEAR = 0.7
"""Of the distance between the two z, where the flow may be on the other side: the error of ours is
a third of it in most steps."""
_AT_KINK = 0.01
"""Of the way of a step: an entry that begins it nearer to an attracting kink is held there."""
_NEGLIGIBLE = 0.1
"""Of the distance of the two solutions: what need not be corrected."""


class SidedField(AveragingField, Protocol):
    """A field of a piece, whose kinks can be looked at."""

    flow: Flow
    objective: Objective

    def averaged(self, theta: Tensor, entered: Tensor, glance: Glance | None = None) -> Tensor:
        """Return F(θ) with slopes averaged over the stretch, under the eyes of ``glance``."""
        ...


class Sides:
    """What one evaluation saw of the kinks; in it, shares may be prescribed.

    Args:
        prescribed: Shares of the stretch spent beyond each kink, in the place of its own.
        companion: The other solution's evaluation. Where it entered on the other side of a kink
            that repels, the entry is taken to stay on its own.

    Attributes:
        entered: How far beyond each kink the entries were where the stretch begins.
        onward: How far they come by its end if they go on as they began.
        shares: What was counted.
        pulls: Derivative of the loss by the share of each entry, over its slope.
    """

    def __init__(
        self, prescribed: list[Tensor] | None = None, companion: Sides | None = None
    ) -> None:
        self.entered: list[Tensor] = []
        self.onward: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.pulls: list[Tensor] = []
        self._prescribed, self._companion = prescribed, companion
        self._own: list[tuple[Tensor, Tensor] | None] = []
        self._held: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @property
    def met(self) -> int:
        """How many kinks were met so far."""
        return len(self.shares)

    def meet(self, x: Tensor, half: Tensor, share: Tensor) -> Tensor:
        """Note where the entries are; put in what was prescribed."""
        kink, entered, own = self.met, x - half, None
        if self._prescribed is not None:
            if kink < len(self._prescribed) and self._prescribed[kink].shape == share.shape:
                share = self._prescribed[kink].clone()
        elif self._companion is not None:
            apart = self._companion.across(kink, entered)
            if apart is not None and bool(apart.any()):
                own = apart, share
                share = torch.where(apart, (entered > 0.0).to(share), share)
        self.entered.append(entered)
        self.onward.append(x + half)
        self.shares.append(share.clone())
        self.pulls.append(torch.zeros_like(share))
        self._own.append(own)
        return share

    def pull(self, kink: int, grad: Tensor) -> None:
        """Note how much depends on the entries."""
        self.pulls[kink] = grad.detach().clone().view_as(self.shares[kink])

    def across(self, kink: int, entered: Tensor) -> Tensor | None:
        """Return which entries began on the other side than here, at a kink that repels."""
        if kink >= self.met or self.entered[kink].shape != entered.shape:
            return None
        return (entered * self.entered[kink] < 0.0) & (self.pulls[kink] < 0.0)

    def followed_by(self, other: Sides) -> None:
        """Take over the shares of another evaluation of the same step."""
        self.shares, self.pulls = other.shares, other.pulls

    def fits(self, others: list[Tensor]) -> bool:
        """Say whether these are of the same kinks."""
        return [o.shape for o in others] == [s.shape for s in self.shares]

    def settle(self, ends: list[Tensor]) -> list[Tensor] | None:
        """Return shares that hold entries which came back at their kinks.

        Args:
            ends: How far beyond each kink the entries are at the end of the step.
        """
        if not self.fits(ends):
            return None
        out: list[Tensor] = []
        for kink, (start, share, end) in enumerate(
            zip(self.entered, self.shares, ends, strict=True)
        ):
            onward = self.onward[kink]
            # from the other side, or from where it has been held before
            attracts = self.pulls[kink] > 0.0
            from_kink = attracts & (start.abs() <= _AT_KINK * (end - start).abs())
            comes = (start * onward <= 0.0) | from_kink
            up, held = onward > 0.0, comes & (onward * end < 0.0)
            over = torch.where(up, share, 1.0 - share)
            new = over * onward / (onward - end)
            if kink < len(self._held):  # what is held may come to lie on either side of it
                was_held, at_kink, was_over, was_end = self._held[kink]
                held = held | was_held
                # the way it set out on is that of being held: two shares tell more
                secant = over - end * (over - was_over) / (end - was_end)
                new = torch.where(at_kink & secant.isfinite(), secant, new)
                self._held[kink] = held, at_kink, over, end
            else:
                self._held.append((held, from_kink, over, end))
            new = torch.where(held & (new > 0.0), new.clamp(max=1.0), over)
            new = torch.where(up, new, 1.0 - new)
            own = self._own[kink]
            if own is not None:  # those that did not stay on their side
                new = torch.where(own[0] & (start * end < 0.0), own[1], new)
            out.append(new)
        return out

    def change(self, shares: list[Tensor]) -> float:
        """Return what other shares change of the gradient, as a part of it, by estimate."""
        change, whole = 0.0, 0.0
        for new, share, pull in zip(shares, self.shares, self.pulls, strict=True):
            change += float(((new - share) * pull).square().sum())
            whole += float((torch.maximum(share, new) * pull).square().sum())
        return (change / whole) ** 0.5 if whole > 0.0 else 0.0


def followed(
    field: SidedField,
    state: Tensor,
    h: float,
    slope: Tensor,
    apart: float,
    companion: Sides | None = None,
) -> tuple[Tensor, Sides]:
    """Return the averaged slope of a step ``h`` from ``state``, with entries held at their kinks.

    Args:
        field: The piece's, with kinks.
        state: Where the step begins.
        h: Its length.
        slope: The way it sets out.
        apart: Distance of the two solutions: what is small beside it is left.
        companion: See :class:`Sides`.
    """
    middle, sides = torch.add(state, slope, alpha=0.5 * h), Sides(companion=companion)
    found = field.averaged(middle, state, sides)
    for _ in range(_ROUNDS):
        shares = sides.settle(_beyond(field, state, h, found))
        if not _matters(field, sides, shares, h, found, apart):
            break
        again = Sides(shares)
        found = field.averaged(middle, state, again)
        sides.followed_by(again)
    return found, sides


class Branching:
    """Entries of one piece that the companion takes to the other side of their kinks."""

    def __init__(self) -> None:
        self._tried: list[Tensor] = []

    def taken(
        self,
        field: SidedField,
        state: Tensor,
        h: float,
        slope: Tensor,
        found: Tensor,
        sides: tuple[Sides, Sides],
        apart: float,
    ) -> Tensor:
        """Return the companion's slope on the branches that our solution does not take.

        Args:
            field: The piece's.
            state: Where the companion's step begins.
            h: Its length.
            slope: The way it sets out.
            found: Its slope on our side.
            sides: The companion's and ours, at the beginning of the same step.
            apart: Distance of the two solutions.
        """
        theirs, ours = sides
        tried = self._to_be_tried(theirs, ours)
        shares = _on(tried, theirs.shares)
        if not _matters(field, theirs, shares, h, found, apart):
            return found
        middle = torch.add(state, slope, alpha=0.5 * h)
        pushed = field.averaged(middle, state, Sides(shares))
        ends = _beyond(field, state, h, pushed)
        if not theirs.fits(ends):
            ends = theirs.entered
        # an entry that comes back of itself is on no branch of its own
        ways = zip(tried, ends, theirs.entered, strict=True)
        stays = [side * (side * (end - start) > 0.0) for side, end, start in ways]
        self._tried, mean = stays, field.objective.mean
        tries, back = _count(tried), _count(tried) - _count(stays)
        if mean(float(back)) == 0.0:
            return pushed
        if mean(float(tries - back)) == 0.0:
            return found
        return field.averaged(middle, state, Sides(_on(stays, theirs.shares)))

    def _to_be_tried(self, theirs: Sides, ours: Sides) -> list[Tensor]:
        """Return the side to be tried, ±1, or 0 for none, entry by entry."""
        out: list[Tensor] = []
        if not ours.fits(theirs.shares):
            return [torch.zeros_like(share) for share in theirs.shares]
        for kink, (there, here) in enumerate(zip(theirs.entered, ours.entered, strict=True)):
            off = (here - there).abs()
            near = here.abs() < _NEAR * torch.maximum(off, off.square().mean().sqrt())
            leaves = here * (ours.onward[kink] - here) > 0.0
            side = -torch.sign(here) * (
                near & leaves & (here * there > 0.0) & (ours.pulls[kink] < 0.0)
            )
            if kink < len(self._tried):  # until its own z is there
                goes_on = self._tried[kink]
                side = torch.where((goes_on != 0.0) & (there * goes_on < 0.0), goes_on, side)
            out.append(side)
        return out


def _matters(
    field: SidedField,
    sides: Sides,
    shares: list[Tensor] | None,
    h: float,
    found: Tensor,
    apart: float,
) -> bool:
    """Say whether other shares are worth an evaluation; all ranks of a run say the same."""
    change = 0.0 if shares is None else sides.change(shares)
    change = field.objective.mean(change)
    return change * h * float(torch.linalg.vector_norm(found)) > _NEGLIGIBLE * apart


def _beyond(field: SidedField, state: Tensor, h: float, slope: Tensor) -> list[Tensor]:
    return field.objective.beyond(position(field.flow, torch.add(state, slope, alpha=h)), "flow")


def _on(tried: list[Tensor], shares: list[Tensor]) -> list[Tensor]:
    pairs = zip(tried, shares, strict=True)
    return [torch.where(side != 0.0, (side > 0.0).to(share), share) for side, share in pairs]


def _count(tried: list[Tensor]) -> int:
    return sum(int((side != 0.0).sum()) for side in tried)
