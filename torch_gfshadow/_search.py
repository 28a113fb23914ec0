"""The search for both ends of a spectrum in one space: which vector comes next, and when to stop.

Read next: ``_krylov``, the space; ``_recycled``, what one search hands on to the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_gfshadow._krylov import NEGLIGIBLE, Pair, Space
from torch_gfshadow._lower_bound import probabilistic_lower_bound
from torch_gfshadow._recycled import Recycled, condense, damped

FAILURE_PROBABILITY = 0.01
"""Chance, over the random start, that ``lower_bound`` of a cold start lies above λ_min."""

KEEP = 3  # Ritz vectors that survive a restart, at each end
_FAR = 5.0  # a residual this far from it is worth a product for what was left of the start


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What a search starts from.

    Attributes:
        vectors: Near the two ends, or near what may become one.
        left: For each end, what to try if its vector turns out to be far off.
        known: What the search before found.
        fresh: Whether to begin with Lanczos from a random vector even so.
    """

    vectors: Sequence[Tensor] = ()
    left: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))
    known: Recycled | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The two ends, whether they meet the tolerance, and what a random start vouches for.

    Attributes:
        low: The lower end.
        high: The upper end.
        converged: Whether both residuals meet the tolerance.
        bound: Probabilistic lower bound on λ_min; None without a random start.
        known: What was learnt of the outliers, if there was a restart.
    """

    low: Pair
    high: Pair
    converged: bool
    bound: float | None
    known: Recycled | None


def search(
    space: Space, start: Start, tol: float, max_products: int, n_outliers: int, seed: int
) -> Found:
    """Search an empty space for both ends; see ``eigen.extreme_eigenpairs``."""
    generator = torch.Generator("cpu").manual_seed(seed)
    known, waiting = start.known, start.vectors
    if not start.fresh:
        _add(space, waiting, max_products)
        waiting = ()
    random = space.size == 0
    if random:
        space.add(_random(space, generator))

    lanczos, bound, before = random, -math.inf, space.projected[:, :0]
    while True:
        values, mixes = space.ritz()
        low, high = space.ends(values, mixes)
        scale = max(abs(low.value), abs(high.value))
        worst_low, worst_high = (_excess(pair, scale, tol) for pair in (low, high))
        converged = max(worst_low, worst_high) <= 1.0
        done = converged or space.products >= max_products or space.size == space.dim
        full = space.size == space.capacity
        if lanczos and (done or full):
            beta = space.off_diagonals()
            bound = probabilistic_lower_bound(values, beta, space.dim, FAILURE_PROBABILITY)
        if done:
            break
        if full:
            known = condense(space, known, n_outliers)
            space.restart(mixes, KEEP, before)
            _add(space, waiting, max_products)
            lanczos, before, waiting = False, before[:, :0], ()
            continue
        # The easier end first: a budget that ends early then leaves one end short, not both.
        end = 0 if worst_high <= 1.0 or 1.0 < worst_low <= worst_high else 1
        easier, left, worst = (low, high)[end], start.left[end], (worst_low, worst_high)[end]
        before = mixes[:, [0, -1]]
        if lanczos:
            direction = space.images[-1]
        elif left and worst > _FAR:
            direction = left.pop(0)
        else:
            direction = damped(easier, known, scale)
        if not (space.add(direction) or space.add(easier.residual)):
            # The space is invariant up to rounding: look elsewhere.
            bound = low.value if lanczos else bound
            lanczos = False
            if not space.add(_random(space, generator)):
                break
    return Found(low, high, converged, min(bound, low.value) if random else None, known)


def _excess(pair: Pair, scale: float, tol: float) -> float:
    """Return the residual in units of what is allowed."""
    rounding = 16 * torch.finfo(pair.residual.dtype).eps * scale
    allowed = max(tol * max(abs(pair.value), NEGLIGIBLE * scale), rounding)
    if pair.residual_norm == 0.0:
        return 0.0
    return pair.residual_norm / allowed if allowed > 0.0 else math.inf  # values underflowed


def _add(space: Space, vectors: Sequence[Tensor], max_products: int) -> None:
    """Add vectors as long as there is room and budget."""
    for vector in vectors:
        if space.size < space.capacity and space.products < max_products:
            space.add(vector)


def _random(space: Space, generator: torch.Generator) -> Tensor:
    # On the CPU whatever the default device is, so that the vector is the same everywhere.
    vector = torch.randn(space.dim, dtype=space.dtype, generator=generator, device="cpu")
    return vector.to(space.device)
