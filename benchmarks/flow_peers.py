"""Other ways to follow the same flow to the same times: each takes a field and returns states."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchdiffeq import odeint

Field = Callable[[Tensor], Tensor]
Sharpness = Callable[[Tensor], float]


def per_step(field: Field, start: Tensor, times: Sequence[float], steps: int, tol: float) -> Tensor:
    """``torchdiffeq.odeint`` called anew for every step of gradient descent."""
    theta, found, dt = start, [], times[-1] / steps
    kept = {round(t / dt) for t in times}
    for step in range(1, steps + 1):
        span = torch.tensor([(step - 1) * dt, step * dt], dtype=torch.float64)
        theta = odeint(lambda _, x: field(x), theta, span, rtol=tol, atol=0.01 * tol)[-1]
        if step in kept:
            found.append(theta)
    return torch.stack(found)


def one_call(field: Field, start: Tensor, times: Sequence[float], steps: int, tol: float) -> Tensor:
    """``torchdiffeq.odeint`` called once, all times known in advance."""
    span = torch.tensor([0.0, *times], dtype=torch.float64)
    out: Tensor = odeint(lambda _, x: field(x), start, span, rtol=tol, atol=0.01 * tol)
    return out[1:]


def torchode_once(
    field: Field, start: Tensor, times: Sequence[float], steps: int, tol: float
) -> Tensor:
    """Dormand–Prince of torchode with its integral controller, called once."""
    import torchode

    term = torchode.ODETerm(lambda t, y: field(y[0])[None])
    controller = torchode.IntegralController(atol=0.01 * tol, rtol=tol, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
    span = torch.tensor([[0.0, *times]], dtype=torch.float64)
    with torch.no_grad():
        solution = solver.solve(torchode.InitialValueProblem(y0=start[None], t_eval=span))
    out: Tensor = solution.ys[0, 1:]
    return out


def runge_kutta(
    field: Field, start: Tensor, times: Sequence[float], sharpness: Sharpness
) -> Tensor:
    """The scheme of edge-of-stability, re-implemented: classical RK4 with h = 1/λ.

    λ is measured at the start of every span between records, the last step of a span cut short.
    """
    theta, now, found = start, 0.0, []
    for time in times:
        longest = 1.0 / max(sharpness(theta), 1e-12)
        while now < time - 1e-12:
            h = min(longest, time - now)
            k1 = field(theta)
            k2 = field(theta + 0.5 * h * k1)
            k3 = field(theta + 0.5 * h * k2)
            k4 = field(theta + h * k3)
            theta = theta + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
            now += h
        found.append(theta)
    return torch.stack(found)


def euler_substeps(
    field: Field, start: Tensor, times: Sequence[float], steps: int, sharpness: Sharpness
) -> Tensor:
    """The stable flow of centralflows, re-implemented: max(4, ⌈2ηλ⌉) Euler substeps per step.

    λ is measured at the start of every span between records.
    """
    theta, found, eta = start, [], times[-1] / steps
    kept = {round(t / eta) for t in times}
    lam = sharpness(theta)
    for step in range(1, steps + 1):
        substeps = max(4, math.ceil(2.0 * eta * lam))
        for _ in range(substeps):
            theta = theta + (eta / substeps) * field(theta)
        if step in kept:
            found.append(theta)
            lam = sharpness(theta)
    return torch.stack(found)
