"""Lemma 2 and Proposition 2 against dense Hessians of deep linear networks.

Equation 14 is compared at points of flows from near zero, integrated by the classical
Runge–Kutta method on many networks at once.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from torch_gfshadow.bounds import proposition2
from torch_gfshadow.bounds._chain import Chain
from torch_gfshadow.bounds._deep_linear import Point
from torch_gfshadow.bounds._losses import Square
from torch_gfshadow.bounds._norms import spectral_norm
from torch_gfshadow.bounds.lemma2 import blocks_matrix, by_norms
from torch_gfshadow.experiments.soundness.closed_forms import Array

_DIMS = ((3, 3, 1), (2, 3, 2), (3, 2, 3, 2), (3, 2, 2, 1), (2, 2, 3, 2, 2))
_STEP, _TIMES = 0.04, (60, 120, 240)


def equation13(rng: np.random.Generator, n: int) -> Array:
    """Equation 13 / −λ_min at random weights."""
    return _at_random(rng, n)[0]


def blocks(rng: np.random.Generator, n: int) -> Array:
    """The tightest of Lemma 2's forms / −λ_min at random weights."""
    return _at_random(rng, n)[1]


def equation14(rng: np.random.Generator, n: int) -> Array:
    """Equation 14 / −λ_min along flows from near zero."""
    return _along_flows(rng, n, "rhs_eq14")


def equation14_sharper(rng: np.random.Generator, n: int) -> Array:
    """Its sharper form / −λ_min along flows from near zero."""
    return _along_flows(rng, n, "rhs_tight")


def _at_random(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    found: list[tuple[Array, Array]] = []
    size = -(-n // len(_DIMS))
    for dims in _DIMS:
        weights = [rng.normal(size=(2 * size, b, a)) / np.sqrt(a) for a, b in pairwise(dims)]
        point = Point(Chain(weights), random_square(rng, 2 * size, dims))
        smallest = np.linalg.eigvalsh(point.hessian())[:, 0]
        bent = np.flatnonzero(smallest < 0)[:size]
        tight = np.linalg.eigvalsh(blocks_matrix(point))[:, -1]
        found.append((by_norms(point)[0][bent] / -smallest[bent], tight[bent] / -smallest[bent]))
    first, second = zip(*found, strict=True)
    return np.concatenate(first), np.concatenate(second)


def _along_flows(rng: np.random.Generator, n: int, which: str) -> Array:
    found: list[Array] = []
    size = -(-n // (len(_DIMS) * len(_TIMES)))
    for dims in _DIMS:
        depth = len(dims) - 1
        loss = random_square(rng, size, dims)
        # ill-conditioned inputs have minima so far out that the flow there is too stiff to follow
        loss = Square((loss.lxx + 0.5 * np.eye(dims[0])) / 1.5, loss.lyx)
        weights = [rng.normal(size=(size, b, a)) for a, b in pairwise(dims)]
        norm = np.sqrt(sum((w**2).sum((1, 2)) for w in weights))
        eps = 10 ** rng.uniform(-1.5, 0, size) / (2 * depth)
        weights = [w * (eps / norm)[:, None, None] for w in weights]
        for step in range(1, max(_TIMES) + 1):
            weights = runge_kutta(weights, loss, _STEP)
            if step in _TIMES:
                found.append(_compare(weights, loss, eps, which))
    return np.concatenate(found)


def _compare(weights: list[Array], loss: Square, eps: Array, which: str) -> Array:
    point = Point(Chain(weights), loss)
    smallest = np.linalg.eigvalsh(point.hessian())[:, 0]
    norms = np.stack([np.asarray(spectral_norm(w)) for w in weights], 1)
    end, outer = spectral_norm(point.chain.end), point.outer
    widths = point.chain.widths
    limits = np.array(
        [
            proposition2(
                len(weights), widths[0], widths[-1], float(np.linalg.norm(outer[i])),
                float(np.linalg.norm(outer[i], 2)), float(end[i]), norms[i].tolist(),
                float(eps[i]),
            ).value[which]
            for i in range(len(eps))
        ]
    )  # fmt: skip
    # at a minimum both are zero up to rounding: nothing is compared there
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(smallest < -1e-7, limits / smallest, np.inf)


def runge_kutta(weights: list[Array], loss: Square, step: float | Array) -> list[Array]:
    """Return the flow of many networks one step later, by the classical method.

    ``step`` is one for all, or ``[networks, 1, 1]``.
    """

    def slope(at: list[Array]) -> tuple[Array, ...]:
        return Point(Chain(at), loss).gradient()

    def moved(by: tuple[Array, ...], share: float) -> list[Array]:
        return [w - share * step * g for w, g in zip(weights, by, strict=True)]

    a = slope(weights)
    b = slope(moved(a, 0.5))
    c = slope(moved(b, 0.5))
    d = slope(moved(c, 1.0))
    mean = tuple((p + 2 * q + 2 * r + s) / 6 for p, q, r, s in zip(a, b, c, d, strict=True))
    return moved(mean, 1.0)


def random_square(rng: np.random.Generator, size: int, dims: tuple[int, ...]) -> Square:
    """Return square losses of random data, one per network, whitened for every second one."""
    d0 = dims[0]
    factor = rng.normal(size=(size, d0, 2 * d0)) / np.sqrt(2 * d0)
    lxx = factor @ factor.swapaxes(1, 2)
    lxx[::2] = np.eye(d0)
    lyx = rng.normal(size=(size, dims[-1], d0))
    lyx *= (rng.uniform(0.5, 1.5, size) / np.linalg.norm(lyx, axis=(1, 2)))[:, None, None]
    return Square(lxx, lyx)
