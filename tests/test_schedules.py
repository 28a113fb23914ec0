"""Rates and momenta that change at every step: one solver goes on, at the cost of a constant."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn
from torch.optim import lr_scheduler

import torch_gfshadow as gfs
from torch_gfshadow.flows.pace import Pace

F64 = torch.float64
H = torch.tensor([0.3, 1.0, 2.5], dtype=F64)
START = torch.tensor([1.0, -2.0, 1.5], dtype=F64)
STEPS = 120

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.99)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.005, alpha=0.9),
    "heavy_ball": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
}


def onecycle(optimizer):
    group = optimizer.param_groups[0]
    cycles = "momentum" in group or "betas" in group
    cycles = cycles and group.get("momentum") != 0
    top = 2 * group["lr"]
    return lr_scheduler.OneCycleLR(optimizer, top, total_steps=STEPS + 1, cycle_momentum=cycles)


def warmup(optimizer):
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.05, 1.0, 15),
        lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 15),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, [15])


SCHEDULES = {
    "constant": lambda o: None,
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "onecycle": onecycle,
    "warmup": warmup,
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.98),
    "step": lambda o: lr_scheduler.StepLR(o, 40, 0.3),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 40),
}


class At(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(START.clone())


def quadratic(model, h):
    return 0.5 * (h * model.theta.square()).sum()


@functools.cache
def train(name, schedule, every=1):
    """Return the shadow, the numbers of every step, and the flow's place at every record."""
    model = At()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = SCHEDULES[schedule](optimizer)
    options = {"probes": (), "bounds": (), "audit": False, "on_error": "raise", "every": every}
    if name in ("heavy_ball", "nesterov"):
        options["flow"] = "heavy_ball"
    shadow = gfs.attach(optimizer, model, quadratic, data=H, **options)
    numbers, places = [], []
    for k in range(STEPS):
        optimizer.zero_grad()
        quadratic(model, H).backward()
        group = optimizer.param_groups[0]
        keys = ("lr", "betas", "alpha", "momentum", "weight_decay", "nesterov", "eps")
        numbers.append({key: group[key] for key in keys if key in group})
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if (k + 1) % every == 0:
            tracker = shadow._tracker
            state = tracker.shadow.state(tracker.clock.time)
            places.append(shadow._parts.flow.position(state).clone())
    return shadow, numbers, places


def start(name, first):
    """State of the optimizer's limit at the start, in its own variables; see the flows."""
    g = H.numpy() * START.numpy()
    theta = START.numpy()
    if name in ("adam", "adamw"):
        b1, b2 = first["betas"]
        return np.concatenate([theta, (1 - b1) * g, (1 - b2) * g**2, [1 - b1, 1 - b2]])
    if name == "rmsprop":
        return np.concatenate([theta, (1 - first["alpha"]) * g**2])
    mu = first["momentum"]
    # θ' = w + a·(−g) begins at rest; see HeavyBall.lift
    velocity = -g * (1 + 2 * mu if first["nesterov"] else 1) / (1 + mu)
    share = 2 * mu / (1 + mu) if first["nesterov"] else 0.0
    return np.concatenate([theta, velocity + share * g])


def rates(name, n):
    """d(state)/d(steps) with one step's numbers, written down from the papers' equations."""
    h, lr = H.numpy(), n["lr"]

    def adam(s, y):
        theta, m, v, c = y[:3], y[3:6], y[6:9], y[9:]
        g = h * theta
        k1, k2 = (-math.log(b) for b in n["betas"])
        move = -(m / c[0]) / (np.sqrt(np.maximum(v / c[1], 0)) + n["eps"])
        move = lr * (move - n["weight_decay"] * theta)
        means = [k1 * (g - m), k2 * (g**2 - v), np.array([k1, k2]) * (1 - c)]
        return np.concatenate([move, *means])

    def rmsprop(s, y):
        theta, v = y[:3], y[3:]
        g, k = h * theta, -math.log(n["alpha"])
        return np.concatenate([-lr * g / (np.sqrt(np.maximum(v, 0)) + n["eps"]), k * (g**2 - v)])

    def ball(s, y):
        theta, w = y[:3], y[3:]
        g, mu = h * theta, n["momentum"]
        share = 2 * mu / (1 + mu) if n["nesterov"] else 0.0
        v = w - share * g
        return np.concatenate([lr * v, (-g - (1 - mu) * v) * 2 / (1 + mu)])

    return {"adam": adam, "adamw": adam, "rmsprop": rmsprop}.get(name, ball)


def reference(name, numbers):
    """θ at the end of every step by SciPy, each step at its own constant rate."""
    y, out = start(name, numbers[0]), []
    for n in numbers:
        y = solve_ivp(rates(name, n), (0, 1), y, "DOP853", rtol=1e-9, atol=1e-12).y[:, -1]
        out.append(torch.from_numpy(y[:3].copy()))
    return out


CASES = [
    *itertools.product(OPTIMIZERS, ("cosine", "warmup", "step")),
    *itertools.product(("adam", "heavy_ball"), ("constant", "onecycle", "exponential", "restarts")),
]


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_the_flow_is_that_of_scipy_with_every_steps_own_numbers(name, schedule):
    shadow, numbers, places = train(name, schedule)
    exact = reference(name, numbers)
    bars = [r.solver_error for r in shadow.records[1:]]
    errors = [float((a - b).norm()) for a, b in zip(places, exact, strict=True)]
    held = sum(e <= bar for e, bar in zip(errors, bars, strict=True))
    assert held >= 0.95 * STEPS
    ok = [r.status == "ok" for r in shadow.records]
    assert sum(ok) >= 0.9 * len(ok)


def spent(shadow):
    grads = shadow.summary()["by_purpose"]["grads"]
    return grads["flow"] + grads.get("error", 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_schedule_costs_about_what_a_constant_rate_costs(name):
    constant = spent(train(name, "constant")[0])
    # restarting the solver at every change cost 8 to 35 gradients a step
    assert constant <= 8 * STEPS
    for schedule, factor in (("cosine", 1.7), ("exponential", 1.5), ("step", 1.5)):
        assert spent(train(name, schedule)[0]) <= factor * constant, schedule
    for schedule in ("onecycle", "warmup"):  # corners within 120 steps
        assert spent(train(name, schedule)[0]) <= 3.0 * constant, schedule


def test_a_parabola_in_each_cell_has_its_mean_and_the_cubic_goes_on():
    pace = Pace(5, (1.0,))
    cells = [0.5 + 0.1 * k + 0.02 * k**2 - 0.001 * k**3 for k in range(8)]
    for k, value in enumerate(cells[:5]):
        pace.add(5 + k, (value,))
    for k in range(1, 4):
        x = np.linspace(0, 1, 2001)[:-1] + 1 / 4000
        bend = 0.5 * (cells[k + 1] - 2 * cells[k] + cells[k - 1])
        mean = np.mean([pace.at(5 + k + y)[0] for y in x])
        assert mean == pytest.approx(cells[k] + bend / 6, rel=1e-6)
    assert pace.known == 10
    assert pace.cell(12) == pytest.approx((cells[7],))
    assert pace.reach(1e-6) > 4


def test_a_jump_is_no_slope():
    pace = Pace(0, (1.0, 0.1))
    for k, value in enumerate([1.0, 1.0, 1.0, 1.0, 0.1, 0.1]):
        pace.add(k, (value, 0.1))
    assert pace.at(3.9) == (1.0, 0.1)
    assert pace.at(4.0) == (0.1, 0.1)
    assert pace.jump(2.5) == 4.0
    assert pace.jump(4.0) == math.inf
    assert pace.reach(1.0) == 2.0
    again = Pace.from_state(pace.state_dict())
    assert (again.at(4.5), again.reach(1.0)) == (pace.at(4.5), pace.reach(1.0))


def test_steps_that_only_count_have_the_pace_of_the_last_one_read():
    every, numbers, _ = train("adam", "cosine")
    some, _, places = train("adam", "cosine", 10)
    last = some.records[-1]
    whole = every.records[-1].discrepancy
    assert last.discrepancy == pytest.approx(whole, abs=3 * last.solver_error)
    assert len(some.records) == STEPS // 10 + 1
    exact = reference("adam", numbers)[-1]
    assert float((places[-1] - exact).norm()) <= last.solver_error
