"""Theorems 2 and 3, Corollary 1 and weight decay, where the flow is known exactly.

f is a sum over three coordinates: c(1 − cos x), whose flow is tan(x/2) = tan(x_0/2) e^{−ct};
c log cosh x, with sinh x = sinh(x_0) e^{−ct}; and ½λx². |x| falls along the flow and along
gradient descent, but for λ < 0, so that curvature is smallest or largest at ends of intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_gfshadow.bounds import corollary1, theorem2, theorem3, weight_decay

Array = NDArray[np.float64]

_MOST_STEPS = 1500


@dataclass(frozen=True, eq=False)
class Cases:
    """Random functions and starts; arrays ``[cases]``, points ``[cases, 3]``."""

    rate: Array
    curvature: Array
    start: Array

    def slope(self, x: Array) -> Array:
        """Return ∇f."""
        c = self.rate[:, None]
        return np.stack(
            [
                c[:, 0] * np.sin(x[:, 0]),
                c[:, 0] * np.tanh(x[:, 1]),
                self.curvature * x[:, 2],
            ],
            1,
        )

    def flow(self, times: Array) -> Array:
        """Return the flow at one time per case."""
        decay = np.exp(-self.rate * times)
        return np.stack(
            [
                2 * np.arctan(np.tan(self.start[:, 0] / 2) * decay),
                np.arcsinh(np.sinh(self.start[:, 1]) * decay),
                self.start[:, 2] * np.exp(-self.curvature * times),
            ],
            1,
        )

    def bends(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Return the smallest f'' and the largest |f''| where low ≤ |x| ≤ high, per coordinate."""
        c = self.rate
        far, near = np.minimum(high, np.pi), np.minimum(low, np.pi)
        smallest = np.stack(
            [c * np.cos(far[:, 0]), c / np.cosh(high[:, 1]) ** 2, self.curvature], 1
        )
        size = np.stack(
            [
                c * np.maximum(np.abs(np.cos(far[:, 0])), np.abs(np.cos(near[:, 0]))),
                c / np.cosh(low[:, 1]) ** 2,
                np.abs(self.curvature),
            ],
            1,
        )
        return smallest, size


def draw(rng: np.random.Generator, n: int) -> Cases:
    """Draw cases."""
    start = rng.uniform(0.05, [3.1, 2.5, 0.5], (n, 3))
    return Cases(10 ** rng.uniform(-1, 0.5, n), rng.uniform(-1.0, 2.0, n), start)


def theorem2_radius(rng: np.random.Generator, n: int) -> Array:
    """A posteriori along gradient descent: bound / discrepancy at the last step."""
    steps, cases = 25, draw(rng, n)
    eta = 10 ** rng.uniform(-3, -0.7, n) / np.maximum(cases.rate, np.abs(cases.curvature))
    points, flows = [cases.start], [cases.start]
    m, delta = np.empty((n, steps)), np.empty((n, steps))
    for k in range(steps):
        points.append(points[-1] - eta[:, None] * cases.slope(points[-1]))
        flows.append(cases.flow(eta * (k + 1)))
        ends = np.abs(np.stack([*points[-2:], *flows[-2:]]))
        smallest, _ = cases.bends(ends.min(0), ends.max(0))
        m[:, k] = -smallest.min(1)
        along = np.abs(np.stack(points[-2:]))
        _, size = cases.bends(along.min(0), along.max(0))
        delta[:, k] = np.linalg.norm(size * np.abs(points[-1] - points[-2]), axis=1)
    radii = [
        theorem2((e * np.arange(steps + 1)).tolist(), a.tolist(), d.tolist()).R[-1]
        for e, a, d in zip(eta, m, delta, strict=True)
    ]
    return np.asarray(np.array(radii) / np.linalg.norm(points[-1] - flows[-1], axis=1))


def theorem3_step(rng: np.random.Generator, n: int, *, half_step: bool = False) -> Array:
    """Gradient descent at the largest step allowed: ε / largest discrepancy up to T."""

    def batch(size: int) -> Array:
        cases, cells = draw(rng, size), 16
        horizon = rng.uniform(0.3, 2.0, size) / np.maximum(cases.rate, np.abs(cases.curvature))
        eps = 10 ** rng.uniform(-2.5, -0.5, size)
        m, beta, gamma = constants(cases, horizon, eps, cells)
        eta = np.array(
            [
                theorem3(
                    (t * np.arange(cells + 1) / cells).tolist(), a.tolist(), b, g, e,
                    half_step=half_step,
                ).value["eta"]
                for t, a, b, g, e in zip(horizon, m, beta, gamma, eps, strict=True)
            ]
        )  # fmt: skip
        return largest_ratio(cases, eta, horizon, eps)

    return enough(batch, n)


def theorem3_half_step(rng: np.random.Generator, n: int) -> Array:
    """The same with the defect growing from zero within each step."""
    return theorem3_step(rng, n, half_step=True)


def constants(cases: Cases, horizon: Array, eps: Array, cells: int) -> tuple[Array, Array, Array]:
    """Return m per cell, β and γ, largest over the ε-balls around the flow up to the horizon."""
    nodes = [cases.flow(horizon * i / cells) for i in range(cells + 1)]
    radius = eps[:, None]
    m = np.empty((len(eps), cells))
    for i in range(cells):
        ends = np.abs(np.stack(nodes[i : i + 2]))
        smallest, _ = cases.bends(np.maximum(ends.min(0) - radius, 0.0), ends.max(0) + radius)
        m[:, i] = -smallest.min(1)
    beta = np.maximum(cases.rate, np.abs(cases.curvature))
    reach = np.maximum(np.abs(nodes[0]), np.abs(nodes[-1])) + radius
    limits = np.stack(
        [
            cases.rate * np.where(reach[:, 0] > np.pi / 2, 1.0, np.sin(reach[:, 0])),
            cases.rate * np.tanh(reach[:, 1]),
            np.abs(cases.curvature) * reach[:, 2],
        ],
        1,
    )
    return m, beta, np.linalg.norm(limits, axis=1)


def corollary1_step(rng: np.random.Generator, n: int) -> Array:
    """One coordinate for each of the three regimes: ε / largest discrepancy up to T."""

    def batch(size: int) -> Array:
        cases = draw(rng, size)
        regime = rng.integers(0, 3, size)
        only = np.eye(3)[regime]
        convex = np.abs(cases.curvature) + 0.1
        cases = Cases(cases.rate, convex, cases.start * only)
        c, x = cases.rate, cases.start
        m = np.choose(regime, [c, np.zeros(size), -convex])
        beta = np.choose(regime, [c, c, convex])
        f0 = c * (1 - np.cos(x[:, 0])) + c * np.log(np.cosh(x[:, 1])) + 0.5 * convex * x[:, 2] ** 2
        horizon = rng.uniform(0.3, 3.0, size) / beta
        eps = 10 ** rng.uniform(-2, 0, size)
        rows = zip(m, beta, f0, eps, horizon, strict=True)
        eta = np.array([corollary1(a, b, f, e, 0.0, t).value["eta"] for a, b, f, e, t in rows])
        return largest_ratio(cases, eta, horizon, eps)

    return enough(batch, n)


def weight_decay_step(rng: np.random.Generator, n: int) -> Array:
    """Quadratics with decay, whose flow is known: ε / largest discrepancy up to T."""

    def batch(size: int) -> Array:
        plain, decay = rng.uniform(-1.0, 2.0, size), rng.uniform(0.0, 1.5, size)
        start = np.zeros((size, 3))
        start[:, 2] = rng.uniform(0.1, 2.0, size)
        cases = Cases(np.ones(size), plain + decay, start)
        horizon = rng.uniform(0.3, 3.0, size)
        eps = 10 ** rng.uniform(-2, 0, size)
        reach = np.abs(start[:, 2]) * np.maximum(1.0, np.exp(-cases.curvature * horizon)) + eps
        rows = zip(plain, decay, reach, eps, horizon, strict=True)
        eta = np.array(
            [
                weight_decay(
                    [0.0, t], -a, abs(a) + 1e-3, (abs(a) + 1e-3) * r, e,
                    weight_decay=w, theta_norm=r,
                ).value["eta"]
                for a, w, r, e, t in rows
            ]
        )  # fmt: skip
        return largest_ratio(cases, eta, horizon, eps)

    return enough(batch, n)


def largest_ratio(cases: Cases, eta: Array, horizon: Array, eps: Array) -> Array:
    """Run gradient descent up to the horizon; return ε / largest discrepancy, NaN if too long."""
    eta = np.minimum(eta, horizon / 3)  # any smaller step is allowed, too
    steps = np.where(eta * _MOST_STEPS > horizon, np.floor(horizon / np.maximum(eta, 1e-300)), 0)
    theta, worst = cases.start, np.zeros(len(eta))
    for k in range(int(steps.max(initial=0))):
        running = k < steps
        theta = np.where(running[:, None], theta - eta[:, None] * cases.slope(theta), theta)
        now = np.minimum(eta * (k + 1), horizon)
        apart = np.linalg.norm(theta - cases.flow(now), axis=1)
        worst = np.where(running, np.maximum(worst, apart), worst)
    with np.errstate(divide="ignore"):
        return np.where(steps > 0, eps / worst, np.nan)


def enough(batch: object, n: int) -> Array:
    """Collect batches until there are ``n`` cases that were short enough to run."""
    found: list[Array] = []
    while sum(map(len, found)) < n:
        ratios = batch(max(200, n // 2))  # type: ignore[operator]
        found.append(ratios[np.isfinite(ratios)])
    return np.concatenate(found)
