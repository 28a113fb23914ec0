"""The tube certificate against the flow of deep linear networks, step by step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from torch_gfshadow.bounds import Square, Tube
from torch_gfshadow.bounds._chain import Chain
from torch_gfshadow.bounds._deep_linear import Point
from torch_gfshadow.experiments.soundness.closed_forms import Array
from torch_gfshadow.experiments.soundness.networks import random_square, runge_kutta

_DIMS = ((3, 3, 1), (2, 3, 2), (3, 2, 2, 1))
_STEPS, _PARTS = 20, 4


def by_mode(rng: np.random.Generator, n: int, *, mode: str) -> Array:
    """R / discrepancy at every step at which the tube stands."""
    found: list[Array] = []
    while sum(map(len, found)) < n:
        dims = _DIMS[int(rng.integers(len(_DIMS)))]
        runs = 20
        loss = random_square(rng, runs, dims)
        eta = 10 ** rng.uniform(-2.5, -1)
        descent = [0.7 * rng.normal(size=(runs, b, a)) / np.sqrt(a) for a, b in pairwise(dims)]
        flow = descent
        tubes = [
            Tube([w[i] for w in descent], Square(loss.lxx[i], loss.lyx[i]), mode=mode)
            for i in range(runs)
        ]
        for _ in range(_STEPS):
            slopes = Point(Chain(descent), loss).gradient()
            descent = [w - eta * g for w, g in zip(descent, slopes, strict=True)]
            for _ in range(_PARTS):
                flow = runge_kutta(flow, loss, eta / _PARTS)
            apart = np.sqrt(
                sum(((a - b) ** 2).sum((1, 2)) for a, b in zip(descent, flow, strict=True))
            )
            radii = np.array([t.step([w[i] for w in descent], eta) for i, t in enumerate(tubes)])
            # a discrepancy that the flow's own error could hide is not compared
            found.append((radii / apart)[np.isfinite(radii) & (apart > 1e-7)])
    return np.concatenate(found)
