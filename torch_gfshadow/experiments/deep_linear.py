"""Deep linear regression small enough to know everything about it, for the studies of the bounds.

Gradient descent, the flow to ten digits, and the largest step size of which something holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torch_gfshadow.balance import balanced_factors
from torch_gfshadow.bounds import Loss, Square, Tube
from torch_gfshadow.bounds._ball import Ball, Node
from torch_gfshadow.bounds._chain import Chain, flat, unflat
from torch_gfshadow.bounds._deep_linear import Point
from torch_gfshadow.bounds._tube import curvature
from torch_gfshadow.bounds.theorem3 import theorem3
from torch_gfshadow.errors import must

Array = NDArray[np.float64]
_SPACING = 0.01  # of the flow's nodes; fourth order, curvatures of order one


@dataclass(frozen=True, eq=False)
class Problem:
    """Weights to start from, and the loss they are trained on.

    Attributes:
        weights: W_1, …, W_n.
        loss: φ.
    """

    weights: tuple[Array, ...]
    loss: Loss

    @property
    def start(self) -> Array:
        """θ_0 as one vector."""
        return flat(self.weights)

    def matrices(self, theta: Array) -> tuple[Array, ...]:
        """Return θ as W_1, …, W_n."""
        return unflat(theta, self.weights)

    def point(self, theta: Array) -> Point:
        """Return f at θ."""
        return Point(Chain(self.matrices(theta)), self.loss)

    def gradient(self, theta: Array) -> Array:
        """Return ∇f(θ)."""
        return flat(self.point(theta).gradient())

    def value(self, theta: Array) -> float:
        """Return f(θ)."""
        return float(self.loss.value(self.point(theta).chain.end))

    def descend(self, step_size: float, n_steps: int) -> Array:
        """Return θ_0, …, θ_K of gradient descent, one per row; NaN after an overflow."""
        path = np.full((n_steps + 1, self.start.size), math.nan)
        theta = path[0] = self.start
        for k in range(1, n_steps + 1):
            with np.errstate(all="ignore"):
                theta = theta - step_size * self.gradient(theta)
            if not np.isfinite(theta).all() or np.abs(theta).max() > 1e6:
                break
            path[k] = theta
        return path


def balanced_problem(dims: Sequence[int], r0: float, nu: float) -> Problem:
    """Return whitened regression with one output from a balanced start, in its own coordinates.

    The target Λ_yx is the first axis, and the end-to-end row starts at distance r0 from 0, at
    cosine ν with it, in the plane of the first two axes. Every whitened problem with normalised
    labels and one output is this one, up to orthogonal changes of the inputs' and the hidden
    layers' coordinates, under which gradient descent, the flow and all bounds are invariant.

    Args:
        dims: d_0, …, d_n with d_0 ≥ 2 and d_n = 1.
        r0: ‖W_{n:1}‖ at the start.
        nu: Cosine of the angle between start and target.

    Raises:
        ValueError: If the widths are too small.
    """
    if dims[0] < 2 or dims[-1] != 1:
        fix = "The start and the target span a plane of inputs."
        raise ValueError(must("dims", "(≥ 2, …, 1)", tuple(dims), fix))
    row = np.zeros((1, dims[0]))
    row[0, :2] = r0 * nu, r0 * math.sqrt(max(0.0, 1 - nu**2))
    layers = balanced_factors(torch.from_numpy(row), dims)
    return Problem(tuple(w.numpy() for w in layers), Square(np.eye(dims[0]), np.eye(dims[0])[:1]))


class DenseFlow:
    """The gradient flow of a problem at every time up to a horizon.

    Fourth-order Runge–Kutta at fixed spacing and cubic Hermite between; the reference tube
    certifies how good that is.

    Attributes:
        horizon: T.
        spacing: Time between two nodes.
        nodes: θ at 0, spacing, …, T, one per row.
    """

    def __init__(self, problem: Problem, horizon: float, spacing: float = _SPACING) -> None:
        n = max(1, math.ceil(horizon / spacing))
        self.horizon, self.spacing = horizon, horizon / n
        h, y = self.spacing, problem.start
        nodes, slopes = [y], [-problem.gradient(y)]
        for _ in range(n):
            k1 = slopes[-1]
            k2 = -problem.gradient(y + h / 2 * k1)
            k3 = -problem.gradient(y + h / 2 * k2)
            k4 = -problem.gradient(y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            nodes.append(y)
            slopes.append(-problem.gradient(y))
        self.nodes, self._slopes = np.array(nodes), np.array(slopes)

    def __call__(self, times: Any) -> Array:
        """Return θ(t), one row per time."""
        place = np.asarray(times, dtype=float) / self.spacing
        left = np.clip(place.astype(int), 0, len(self.nodes) - 2)
        u = (place - left)[..., None]
        a, b = self.nodes[left], self.nodes[left + 1]
        m, n = self.spacing * self._slopes[left], self.spacing * self._slopes[left + 1]
        return np.asarray(a + (3 - 2 * u) * u**2 * (b - a) + u * (1 - u) * ((1 - u) * m - u * n))


def distances(problem: Problem, flow: DenseFlow, step_size: float, n_steps: int) -> Array:
    """Return ‖θ_k − θ(kη)‖ for k = 0, …, K; NaN after an overflow."""
    path = problem.descend(step_size, n_steps)
    return np.asarray(np.linalg.norm(path - flow(step_size * np.arange(n_steps + 1)), axis=1))


def largest_step(
    holds: Callable[[float, int], bool], horizon: float, *, least: float = 1e-4, tol: float = 0.04
) -> float:
    """Return the largest η = T/K found for which ``holds(η, K)``; 0 if none down to ``least``.

    By doubling K until it holds and bisecting after that; to relative accuracy ``tol`` where K is
    large enough for it.
    """
    good = 1
    while not holds(horizon / good, good):
        good *= 2
        if horizon / good < least:
            return 0.0
    bad = good // 2
    while good - bad > max(1, tol * good):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(horizon / middle, middle) else (good, middle)
    return horizon / good


def largest_true_step(problem: Problem, flow: DenseFlow, eps: float) -> float:
    """Return the largest step size with which gradient descent stays within ε of the flow."""

    def holds(step_size: float, n_steps: int) -> bool:
        return bool((distances(problem, flow, step_size, n_steps) <= eps).all())

    return largest_step(holds, flow.horizon)


def largest_tube_step(
    problem: Problem, horizon: float, eps: float, mode: str, tol: float = 0.04
) -> float:
    """Return the largest step size whose tube stays within ε up to the horizon: certified."""

    def holds(step_size: float, n_steps: int) -> bool:
        tube, theta = Tube(problem.weights, problem.loss, mode=mode), problem.start
        for _ in range(n_steps):
            theta = theta - step_size * problem.gradient(theta)
            if not np.isfinite(theta).all() or np.abs(theta).max() > 1e6:
                return False
            if not tube.step(problem.matrices(theta), step_size) <= eps:
                return False
        return True

    return largest_step(holds, horizon, tol=tol)


def theorem3_steps(problem: Problem, flow: DenseFlow, eps: float) -> dict[str, float]:
    """Return log η of Theorem 3 on the ε-balls around the flow, by the curvature it is given.

    The constants hold on the balls around the flow's nodes; between nodes they are taken to be
    the larger neighbour's. Keys: ``eq13``, ``tight`` (the smallest of all limits), ``half_step``
    (the same, counting that within a step the defect grows from 0), ``constant`` (one m for all
    times: the form of Corollary 1).
    """
    times = flow.spacing * np.arange(len(flow.nodes))
    balls = [Ball(Node(problem.point(y)), eps) for y in flow.nodes]
    by_norms = [ball.curvature_by_norms for ball in balls]
    tight = [curvature(ball, "C", eps / 2) for ball in balls]
    beta, gamma = max(b.smoothness for b in balls), max(b.steepest for b in balls)

    def log_eta(m: Sequence[float], half_step: bool = False) -> float:
        rates = [max(pair) for pair in pairwise(m)]
        found = theorem3(times.tolist(), rates, beta, gamma, eps, half_step=half_step)
        return float(found.value["log_eta"])

    return {
        "eq13": log_eta(by_norms),
        "tight": log_eta(tight),
        "half_step": log_eta(tight, True),
        "constant": log_eta([max(tight)] * len(tight)),
    }
