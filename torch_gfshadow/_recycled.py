"""What a search for the ends of a spectrum hands on to the next one, and what that is good for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_gfshadow._krylov import NEGLIGIBLE, Pair, Space

_CLOSE = 0.1  # a neighbour this near, relatively, may have overtaken the end by next time
_N_LOW = 4  # remembered directions that are reserved for the lower end, whose curvatures are small
_NEAREST = 1.0 / 3.0  # distances of stale curvatures below this, in units of the end, are unknown


@dataclass(frozen=True, slots=True, eq=False)
class Recycled:
    """What the next search may start from. Opaque to everyone else.

    Attributes:
        starts: Unit vectors near the two ends, shape ``[p, d]``.
        outliers: Orthonormal directions of the largest curvatures known, some of them stale,
            shape ``[q, d]``.
        curvatures: Their curvatures, shape ``[q]``, float64 on the CPU.
    """

    starts: Tensor
    outliers: Tensor
    curvatures: Tensor

    def to(self, dtype: torch.dtype, device: torch.device) -> Recycled:
        """Return the same on another device or in another precision."""
        starts, outliers = self.starts.to(device, dtype), self.outliers.to(device, dtype)
        return Recycled(starts, outliers, self.curvatures)


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
    picked = []
    for end in (0, -1):
        found = torch.zeros(len(projected), dtype=torch.float64, device="cpu")
        found[: space.size] = ritz[:, end]
        picked += [found, *_rivals(curvatures, mixes, float(values[end]), found, end)]

    def vectors(mix: Tensor) -> Tensor:
        mix = space.small(mix)
        return mix[:, : space.size] @ space.vectors + mix[:, space.size :] @ stale

    return Recycled(vectors(torch.stack(picked)), vectors(mixes[:, chosen].T), curvatures[chosen])


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
