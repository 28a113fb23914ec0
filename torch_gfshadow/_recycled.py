"""What a search for the ends of a spectrum hands on to the next one, and what that is good for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_gfshadow._krylov import NEGLIGIBLE, Pair, Space

_CLOSE = 0.1  # a neighbour this near, relatively, may have overtaken the end by next time
_N_LOW = 4  # remembered directions that are reserved for the lower end, whose curvatures are small
_SAME = 0.5  # an end vector this much along the former one is the same, turned
_STILL = 1e-6  # a turn with a smaller sin² is rounding, or what the tolerance leaves open
_STEADY = 0.7  # a turn of which more (of sin²) lies across the last one is not foreseen by it
_FASTEST = 4.0  # turns that grow faster are not foreseen either
_NEAREST = 1.0 / 3.0  # distances of stale curvatures below this, in units of the end, are unknown


@dataclass(frozen=True, slots=True, eq=False)
class Recycled:
    """What the next search may start from. Opaque to everyone else.

    Attributes:
        starts: Unit vectors: the lower end's, the upper end's, and such as may overtake one
            of them; shape ``[p, d]``.
        outliers: Orthonormal directions of the largest curvatures known, some of them stale,
            shape ``[q, d]``.
        curvatures: Their curvatures, shape ``[q]``, float64 on the CPU.
        before: The two end vectors of the point before, shape ``[2, d]``; 0 where the end was
            another vector, None if there was no point before.
        turns: How each end vector goes on turning, see ``_turn``: 0 if that cannot be foreseen,
            None if it has not been tried.
    """

    starts: Tensor
    outliers: Tensor
    curvatures: Tensor
    before: Tensor | None = None
    turns: tuple[float | None, float | None] = (None, None)

    def to(self, dtype: torch.dtype, device: torch.device) -> Recycled:
        """Return the same on another device or in another precision."""
        starts, outliers = self.starts.to(device, dtype), self.outliers.to(device, dtype)
        before = None if self.before is None else self.before.to(device, dtype)
        return Recycled(starts, outliers, self.curvatures, before, self.turns)

    def still(self) -> Recycled:
        """Return the same for a search at the very point where this was found."""
        return replace(self, before=None, turns=(None, None))

    def following(self, earlier: Recycled | None) -> Recycled:
        """Return the same with what the end vectors of the point before say about their turning."""
        if earlier is None or earlier.starts.shape[1] != self.starts.shape[1]:
            return self
        before = torch.zeros_like(self.starts[:2])
        turns: list[float | None] = [None, None]
        for end in (0, 1):
            vector, old = self.starts[end], earlier.starts[end]
            if abs(float(vector @ old)) < _SAME:
                continue
            before[end] = old
            if earlier.before is not None:
                turns[end] = _turn(vector, old, earlier.before[end])
        return replace(self, before=before, turns=(turns[0], turns[1]))

    def ahead(self) -> tuple[list[Tensor], tuple[list[Tensor], list[Tensor]]]:
        """Return vectors to start from, and for each end what to try next if that was far off.

        Where the end vector has turned as it did before, it is expected to go on so; what is
        left then is it as it was. Where that is not known, the last turn may still be repeated
        by any amount: its direction is left.
        """
        starts = list(self.starts)
        left: tuple[list[Tensor], list[Tensor]] = ([], [])
        if self.before is None:
            return starts, left
        for end in (0, 1):
            vector, before, turn = self.starts[end], self.before[end], self.turns[end]
            if turn is not None and turn != 0.0:
                starts[end] = vector + turn * _across(before, vector)
                left[end].append(vector)
            elif turn is None and bool(before.any()):
                left[end].append(before)
        return starts, left


def condense(space: Space, known: Recycled | None, n_outliers: int) -> Recycled:
    """Condense the space, and what was ``known`` before, for the next search.

    The outliers are a Rayleigh–Ritz projection onto span(V) ⊕ span(Z), Z what the old outliers
    have outside V. VᵀHV and VᵀHZ = WᵀZ are exact and free; ZᵀHZ is the old one.
    """
    stale = _outside(space, known)
    projected = space.projected
    if known is not None and len(stale):
        overlap = (known.outliers @ stale.T).cpu().double()
        corner = overlap.T @ (known.curvatures[:, None] * overlap)
        side = (space.images @ stale.T).cpu().double()
        projected = torch.cat(
            [torch.cat([projected, side], dim=1), torch.cat([side.T, corner], dim=1)]
        )
    curvatures, mixes = torch.linalg.eigh(projected)
    chosen = _outermost(curvatures, n_outliers)

    values, ritz = space.ritz()
    ends, rivals = [], []
    for end in (0, -1):
        found = torch.zeros(len(projected), dtype=torch.float64, device="cpu")
        found[: space.size] = ritz[:, end]
        ends.append(found)
        rivals += _rivals(curvatures, mixes, float(values[end]), found, end)

    def vectors(mix: Tensor) -> Tensor:
        mix = space.small(mix)
        return mix[:, : space.size] @ space.vectors + mix[:, space.size :] @ stale

    starts, outliers = vectors(torch.stack(ends + rivals)), vectors(mixes[:, chosen].T)
    return Recycled(starts, outliers, curvatures[chosen])


def damped(pair: Pair, known: Recycled | None, scale: float) -> Tensor:
    """Return the residual with remembered directions weighted as (H − θ)⁻¹ would weight them.

    A direction y of curvature c enters the residual |c − θ| times its weight in the error, the
    bulk around 0 about |θ| times. So outliers far across the spectrum are damped: it would take
    one product each to remove them otherwise. And neighbours of θ are amplified, into which the
    eigenvector has turned since; up to threefold, as a stale curvature says no more.
    """
    if known is None or not len(known.outliers):
        return pair.residual
    unit = max(abs(pair.value), NEGLIGIBLE * scale)
    if unit == 0.0:
        return pair.residual
    distances = (known.curvatures - pair.value).abs().clamp(min=_NEAREST * unit)
    cut = (1.0 - unit / distances).to(pair.residual.dtype).to(pair.residual.device)
    return pair.residual - known.outliers.T @ (cut * (known.outliers @ pair.residual))


def _across(other: Tensor, vector: Tensor) -> Tensor:
    """Return what ``other`` has across a unit vector, with the sign that makes them alike."""
    along = other @ vector
    return torch.sign(along) * (other - along * vector)


def _turn(vector: Tensor, old: Tensor, older: Tensor) -> float | None:
    """Return the weight w of v ∝ a + w·(b across a), for v, a and b one after the other.

    Next time the same weight is applied to v and a. It is −1 for a vector that turns in a plane
    at a constant rate, −2 at a rate that doubles from point to point; 0 if that leaves most of
    the turn unexplained, None if b is another vector.
    """
    last, moved = _across(older, old), _across(vector, old)
    square, size = float(last @ last), float(moved @ moved)
    if square == 0.0:
        return None
    if size < _STILL:
        return 0.0
    share = float(moved @ last) / square
    missed = moved - share * last
    weight = share / abs(float(vector @ old))
    return weight if float(missed @ missed) < _STEADY * size and abs(weight) < _FASTEST else 0.0


def _rivals(
    curvatures: Tensor, mixes: Tensor, value: float, found: Tensor, end: int
) -> list[Tensor]:
    """Return the remembered direction next to an end, or beyond it, if it may be the end soon.

    It need not be in the search space at all: that was built for the end alone.
    """
    itself = int((mixes.T @ found).abs().argmax())
    others = [index for index in range(len(curvatures)) if index != itself]
    if not others:
        return []
    inward = float(curvatures[others[end]]) - value
    inward = inward if end == 0 else -inward
    return [mixes[:, others[end]]] if inward <= _CLOSE * abs(value) else []


def _outermost(curvatures: Tensor, n: int) -> Tensor:
    """Return where the few smallest of the ascending curvatures are, and the largest in size."""
    n = min(n, len(curvatures))
    n_low = min(_N_LOW, n // 2)
    largest = curvatures[n_low:].abs().argsort(descending=True)[: n - n_low]
    return torch.cat([torch.arange(n_low, device="cpu"), n_low + largest])


def _outside(space: Space, known: Recycled | None) -> Tensor:
    """Return an orthonormal basis of what the old outliers have outside V."""
    if known is None or not len(known.outliers):
        return space.vectors[:0]
    left = known.outliers
    for _ in range(2):
        left = left - (left @ space.vectors.T) @ space.vectors
    sizes, turns = torch.linalg.eigh((left @ left.T).cpu().double())
    kept = sizes > 1e-3  # less than that is rounding, magnified
    return space.small((turns[:, kept] / sizes[kept].sqrt()).T) @ left
