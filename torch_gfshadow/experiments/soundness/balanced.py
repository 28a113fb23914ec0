"""Proposition 3, Theorem 4 and its tight and nearly balanced forms against the exact flow."""

from __future__ import annotations

import math

import numpy as np
import torch

from torch_gfshadow.balance import balanced_factors
from torch_gfshadow.bounds import tight_step
from torch_gfshadow.bounds._balanced import Setting
from torch_gfshadow.bounds._exact_flow import follow, time_of
from torch_gfshadow.bounds._phi import exp
from torch_gfshadow.bounds.approximate_balance import log_largest
from torch_gfshadow.bounds.proposition3 import equation17, equation18
from torch_gfshadow.bounds.theorem4 import log_step_size, n_steps
from torch_gfshadow.bounds.tight_step import ball_constants, limit_on_balls
from torch_gfshadow.experiments.soundness.closed_forms import Array

_CELLS = 100


def equation17_time(rng: np.random.Generator, n: int) -> Array:
    """The time limit (17) / the time the flow takes."""
    found = []
    for setting, accuracy in _draw(rng, n):
        path = follow(setting, gap=accuracy)
        limit = equation17(setting.n, setting.r0, setting.nu, accuracy).value
        found.append(limit["t_bar"] / max(time_of(path, accuracy), 1e-12))
    return np.array(found)


def equation18_integral(rng: np.random.Generator, n: int) -> Array:
    """The limit (18) / a certified integral of m on the balls."""
    found = []
    for setting, accuracy in _draw(rng, n):
        path = follow(setting, gap=accuracy).thinned(_CELLS)
        eps = 10 ** rng.uniform(-8, 0) / (2 * setting.n)
        m, _, _ = ball_constants(path, eps)
        integral = float(m @ np.diff(path.times))
        time = float(path.times[-1])
        limit = equation18(setting.n, setting.r0, setting.nu, time, eps).value["rhs"]
        found.append(limit / integral)
    return np.array(found)


def equation19_step(rng: np.random.Generator, n: int) -> Array:
    """The step of Theorem 3 along the exact flow / that of (19), at the ε of the proof."""
    return np.array([_slack(*case, start=False) for case in _draw(rng, n)])


def nearly_balanced_step(rng: np.random.Generator, n: int) -> Array:
    """The same, started ρ_max from balance."""
    return np.array([_slack(*case, start=True) for case in _draw(rng, n)])


def equation20_steps(rng: np.random.Generator, n: int) -> Array:
    """The time of the k steps of (20) / the time the flow takes to half the loss."""
    found = []
    for setting, accuracy in _draw(rng, n):
        log_eta = log_step_size(setting, accuracy)
        steps = n_steps(setting, accuracy, log_eta)
        time = exp(float(steps.ln()) + log_eta)
        wanted = 0.5 * min(1.0, accuracy)
        found.append(time / max(time_of(follow(setting, gap=wanted), wanted), 1e-12))
    return np.array(found)


def tight_step_loss(rng: np.random.Generator, n: int) -> Array:
    """Gradient descent at the tight step: ε̃ / loss after the promised number of steps."""
    found: list[Array] = []
    while sum(map(len, found)) < n:
        depth = int(rng.integers(2, 5))
        size = max(100, n // 4)
        r0, nu = rng.uniform(0.1, 0.2, size), rng.uniform(0.0, 1.0, size)
        accuracy = 10 ** rng.uniform(-1, -0.3, size)
        rows = [tight_step(depth, *case).value for case in zip(r0, nu, accuracy, strict=True)]
        short = np.array([row["k"] is not None and row["k"] <= 600 for row in rows])
        eta = np.array([row["eta"] for row in rows])[short]
        steps = np.array([row["k"] or 0 for row in rows])[short]
        loss = _descend(depth, r0[short], nu[short], eta, steps)
        found.append(accuracy[short] / loss)
    return np.concatenate(found)


def _descend(depth: int, r0: Array, nu: Array, eta: Array, steps: Array) -> Array:
    """Run gradient descent from balanced weights on many problems; return the losses."""
    dims = [3, *[2] * (depth - 1), 1]
    starts: list[list[torch.Tensor]] = []
    for size, cosine in zip(r0, nu, strict=True):
        row = torch.tensor([[cosine, math.sqrt(1 - cosine**2), 0.0]], dtype=torch.float64)
        generator = torch.Generator().manual_seed(len(starts))
        starts.append(balanced_factors(size * row, dims, turn=True, generator=generator))
    weights = [np.stack([s[j].numpy() for s in starts]) for j in range(depth)]
    target = np.array([[1.0, 0.0, 0.0]])
    loss = np.full(len(eta), np.inf)
    for k in range(int(steps.max(initial=0)) + 1):
        ahead = [np.broadcast_to(np.eye(3), (len(eta), 3, 3))]
        for w in weights:
            ahead.append(w @ ahead[-1])
        loss = np.where(k == steps, 0.5 * ((ahead[-1] - target) ** 2).sum((1, 2)), loss)
        pull = (ahead[-1] - target).swapaxes(1, 2)
        slopes = []
        for j in reversed(range(depth)):
            slopes.append((ahead[j] @ pull).swapaxes(1, 2))
            pull = pull @ weights[j]
        for w, slope in zip(weights, reversed(slopes), strict=True):
            w -= eta[:, None, None] * slope
    return loss


def _slack(setting: Setting, accuracy: float, *, start: bool) -> float:
    """Return how much larger than (19) a step Theorem 3 allows with the exact flow."""
    wanted = 0.5 * min(1.0, accuracy)
    path = follow(setting, gap=wanted).thinned(_CELLS)
    log_eps = min(0.0, math.log(accuracy)) + 2 * math.log(setting.r0) - math.log(30)
    log_eps -= 4 * math.log(setting.n) + 2 * setting.n * setting.log_p
    log_eps -= math.log(setting.log_l(accuracy))
    rho = exp(log_largest(setting, accuracy)) if start else 0.0
    found = limit_on_balls(path, exp(log_eps), rho).value["log_eta"]
    if found is None:
        return 0.0
    return exp(min(700.0, float(found) - log_step_size(setting, accuracy)))


def _draw(rng: np.random.Generator, n: int) -> list[tuple[Setting, float]]:
    return [
        (
            Setting.of(
                int(rng.integers(2, 7)),
                0.2 * 10 ** rng.uniform(-1.5, 0),
                1.0 if rng.random() < 0.1 else rng.uniform(-0.9, 1.0),
            ),
            10 ** rng.uniform(-4, -0.5),
        )
        for _ in range(n)
    ]
