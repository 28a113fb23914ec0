"""Toy objectives whose gradient flow is known exactly, and a bare loop of GD beside a shadow."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import torch
from scipy.integrate import solve_ivp
from torch import nn

from torch_gfshadow._tree import Layout
from torch_gfshadow.flows import GradientFlow
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.objective import Objective
from torch_gfshadow.shadow import ShadowFlow
from torch_gfshadow.solvers import Auto

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def symmetric(eigenvalues, seed=0):
    """A dense symmetric matrix with these eigenvalues."""
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=F64))
    matrix = q @ torch.diag(torch.as_tensor(eigenvalues, dtype=F64)) @ q.T
    return 0.5 * (matrix + matrix.T)


class Point(nn.Module):
    """A model that is nothing but its parameter θ."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(theta, dtype=F64).clone())

    def forward(self):
        return self.theta


def diagonal(model, h):
    """½ Σ h_i θ_i²."""
    return 0.5 * (h * model.theta**2).sum()


def quadratic(model, matrix):
    """½ θᵀAθ."""
    return 0.5 * model.theta @ (matrix @ model.theta)


def quartic(model, sign):
    """sign · ¼ Σ θ⁴: with sign −1 the flow leaves in finite time 1/(2θ_0²)."""
    return 0.25 * (sign * model.theta**4).sum()


def scalar_deep_linear(model, target):
    """½ (Π w_j − y)²: a deep linear network with one unit per layer."""
    return 0.5 * (model.theta.prod() - target[0]) ** 2


def squared(model, batch):
    x, y = batch
    return 0.5 * ((model(x) - y) ** 2).sum(-1).mean()


def cross_entropy(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def network(activation, widths=(4, 8, 8, 2), seed=0, samples=32, dtype=F64, bias=True):
    """A fully connected network and a regression problem for it."""
    generator = seeded(seed)
    layers = []
    for inner, outer in itertools.pairwise(widths):
        linear = nn.utils.skip_init(nn.Linear, inner, outer, bias=bias, dtype=dtype)
        with torch.no_grad():
            for p in linear.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=F64) / math.sqrt(inner))
        layers += [linear, activation()]
    model = nn.Sequential(*layers[:-1])
    x = torch.randn(samples, widths[0], generator=generator, dtype=F64).to(dtype)
    mixing = torch.randn(widths[0], widths[-1], generator=generator, dtype=F64).to(dtype)
    return model, (x, torch.sin(x @ mixing))


def objective_of(model, fn, data):
    named = list(model.named_parameters())
    layout = Layout([name for name, _ in named], [p for _, p in named])
    return Objective(model, fn, data, layout, Ledger())


def reference(objective, theta, times, rtol=1e-11):
    """The gradient flow at ``times``, by SciPy's DOP853 on the objective's own gradient."""

    def field(_, y):
        return -objective.loss_and_grad(torch.from_numpy(y.copy()), "setup")[1].numpy()

    out = solve_ivp(
        field, (0.0, times[-1]), theta.numpy(), "DOP853", t_eval=times, rtol=rtol, atol=1e-13
    )
    assert out.success, out.message
    return list(torch.from_numpy(out.y.T.copy()))


def exact_quadratic(matrix, theta, times):
    """The flow e^{−At}θ_0 at ``times``."""
    values, vectors = torch.linalg.eigh(matrix)
    start = vectors.T @ theta
    return [vectors @ (torch.exp(-values * t) * start) for t in times]


@dataclass
class Run:
    """Gradient descent with a shadow beside it, one entry per step."""

    flow: ShadowFlow
    times: list = field(default_factory=list)
    shadows: list = field(default_factory=list)
    bars: list = field(default_factory=list)
    discrepancies: list = field(default_factory=list)
    losses: list = field(default_factory=list)

    def errors(self, exact):
        return [float((a - b).norm()) for a, b in zip(self.shadows, exact, strict=True)]


def beside(objective, step_size, steps, *, config=None, resolution=None, lambda_max=None):
    """Run GD on ``objective`` from its model's parameters with a shadow; the model stays."""
    theta = objective.layout.current(F64)
    flow = GradientFlow()
    flow.configure([{"params": objective.layout.params}], objective.layout)
    shadow = ShadowFlow(
        objective,
        flow,
        config or Auto(),
        theta,
        objective.initial,
        time=0.0,
        step_size=step_size,
        resolution=resolution,
    )
    run = Run(shadow)
    for k in range(1, steps + 1):
        theta = theta - step_size * objective.loss_and_grad(theta, "setup")[1].to(F64)
        now = k * step_size
        if not shadow.advance(now, lambda_max):
            break
        state = shadow.state(now)
        run.times.append(now)
        run.shadows.append(state)
        run.bars.append(shadow.error)
        run.discrepancies.append(float((theta - state).norm()))
        run.losses.append(shadow.loss(now))
        shadow.observe(run.discrepancies[-1])
    return run
