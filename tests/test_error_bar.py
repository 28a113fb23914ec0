"""The error bar is a claim: it covers the true error, is not far above it, and moves with it."""

import math
import statistics

import pytest
import torch
from cases import (
    F64,
    Point,
    beside,
    cross_entropy,
    exact_quadratic,
    network,
    objective_of,
    quadratic,
    reference,
    scalar_deep_linear,
    seeded,
    squared,
    symmetric,
)
from torch import nn

from torch_gfshadow.experiments.data import mnist_digits
from torch_gfshadow.solvers import Dopri5
from torch_gfshadow.solvers.base import Node
from torch_gfshadow.solvers.defect_bar import DefectBar
from torch_gfshadow.solvers.error_bar import BLOCK, SAFETY, ErrorBar
from torch_gfshadow.solvers.rkc import stages_for


def linear(h):
    return lambda y: -h * y


def carried(h, steps, size=1e-4, step=0.05):
    """Inject one local error, then ``steps`` exact steps of θ' = −hθ; return the bar."""
    field = linear(torch.tensor([h, 2.0], dtype=F64))
    start = torch.tensor([1.0, 1.0], dtype=F64)

    def node(t):
        state = start * torch.exp(-torch.tensor([h, 2.0], dtype=F64) * t)
        return Node(t, state, field(state))

    bar = ErrorBar(field, node(0.0))
    assert bar.value == 0.0
    bar.add(torch.tensor([size, 0.0], dtype=F64), node(step), 2.5 * step, 1e-3)
    for k in range(2, steps + 1):
        bar.add(torch.zeros(2, dtype=F64), node(k * step), 2.5 * step, 1e-3)
    return bar.value


def test_one_local_error_shows_at_once_with_the_safety_factor():
    assert carried(1.0, 1) == pytest.approx(SAFETY * math.sqrt(2.0) * 1e-4)


def test_an_error_decays_where_the_loss_is_convex():
    n = 10 * BLOCK
    assert carried(1.0, n) == pytest.approx(SAFETY * 1e-4 * math.exp(-0.05 * n), rel=2.5)


def test_an_error_grows_where_the_curvature_is_negative():
    n = 8 * BLOCK
    assert carried(-0.7, n) == pytest.approx(SAFETY * 1e-4 * math.exp(0.7 * 0.05 * n), rel=0.35)


def test_an_error_stays_where_the_loss_is_flat():
    assert carried(0.0, 6 * BLOCK) == pytest.approx(SAFETY * 1e-4, rel=1e-3)


def test_opposite_local_errors_cancel_and_equal_ones_add():
    node = Node(0.0, torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64))
    add, cancel = (ErrorBar(torch.zeros_like, node) for _ in range(2))
    error = torch.tensor([3e-5, 4e-5], dtype=F64)
    for k in range(1, 11):
        there = Node(0.1 * k, node.state, node.field)
        add.add(error, there, 0.0, 1e-3)
        cancel.add(error if k % 2 else -error, there, 0.0, 1e-3)
    assert add.value == pytest.approx(SAFETY * 5e-5 * math.hypot(10.0, 1.0))
    assert cancel.value == pytest.approx(SAFETY * 5e-5)


def test_an_error_known_by_norm_alone_is_added_as_it_is():
    bar = ErrorBar(torch.zeros_like, Node(0.0, torch.zeros(2), torch.zeros(2)))
    bar.add_norm(0.25)
    assert bar.value == 0.25


def long_steps(rates, steps, allowed, wrong, scale=lambda t: 1e-2, h=1.0):
    """Let every mode of θ' = −rates·θ be off by ``wrong`` at first; return the bars beside it."""
    rates = torch.tensor(rates, dtype=F64)
    calls = []

    def field(y):
        calls.append(1)
        return -rates * y

    def node(t):
        state = torch.exp(-rates.clamp(min=0.0) * t)
        return Node(t, state, -rates * state)

    bar, bars = DefectBar(field, node(0.0), F64), []
    bar.start_from(scale(0.0))
    bar.allowed = allowed
    for k in range(1, steps + 1):
        error = torch.full_like(rates, wrong if k == 1 else 0.0)
        hl = 1.2 * h * float(rates.max())
        bar.add(error, node(k * h), hl, scale(k * h), evaluations=stages_for(hl))
        bar.expect(0.0, k * h, h)
        bar.at(k * h)
        bars.append(bar.value)
    return bars, len(calls)


def test_a_bar_that_is_wide_enough_fades_with_the_error_all_the_same():
    bars, calls = long_steps([20.0, 2.0, 0.1], 40, allowed=1.0, wrong=1e-4)
    assert bars[0] == pytest.approx(SAFETY * 1e-4 * math.sqrt(6.0))
    for k in (10, 20, 40):
        assert SAFETY * 1e-4 * math.exp(-0.1 * k) <= bars[k - 1] <= 5e-4 * math.exp(-0.1 * k) * 8
    assert calls <= 0.4 * 40 * stages_for(24.0)


def test_a_bar_grows_with_the_discrepancy_and_is_carried_before_it_has_doubled():
    bars, _ = long_steps([2.0, -0.5], 8, 1.0, 1e-5, scale=lambda t: 1e-3 * math.exp(0.5 * t), h=0.5)
    true = [1e-5 * math.exp(0.25 * k) for k in range(8)]
    assert all(e <= bar <= 10.0 * e for bar, e in zip(bars, true, strict=True))


def test_what_a_step_under_way_gets_wrong_grows_as_the_third_power():
    node = Node(0.0, torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64))
    bar = DefectBar(torch.zeros_like, node)
    bar.expect(8e-3, 0.0, 2.0)
    for time, share in [(0.0, 0.0), (1.0, 1e-3), (2.0, 8e-3), (9.0, 8e-3)]:
        bar.at(time)
        assert bar.value == pytest.approx(SAFETY * share)


def test_carrying_costs_few_evaluations_of_the_field():
    calls = []

    def field(y):
        calls.append(1)
        return -y

    def node(t):
        state = torch.full((3,), math.exp(-t), dtype=F64)
        return Node(t, state, -state)

    bar = ErrorBar(field, node(0.0))
    for k in range(1, 4 * BLOCK + 1):
        bar.add(torch.full((3,), 1e-6, dtype=F64), node(0.1 * k), 2.5, 1e-3)
    assert len(calls) <= 0.5 * 3 * 4 * BLOCK  # of a pair that takes 3 a step, at its limit


def quadratic_case(eigenvalues):
    matrix = symmetric(eigenvalues)
    theta = torch.randn(len(eigenvalues), generator=seeded(1), dtype=F64)
    return objective_of(Point(theta), quadratic, matrix), matrix, theta


def calibration(run, exact):
    errors = run.errors(exact)
    assert errors, run.flow.status
    covered = sum(b >= e for b, e in zip(run.bars, errors, strict=True)) / len(errors)
    ratio = statistics.median(b / max(e, 1e-300) for b, e in zip(run.bars, errors, strict=True))
    return covered, ratio


# A pair alone, where no gradients of the run carry the shadow: its bar holds but is too wide.
OPEN = pytest.mark.xfail(strict=True, reason="a bar too wide")


QUADRATICS = {
    "mild": ([0.1, 0.5, 1.0, 2.0], 0.02, 300),
    "stiff": ([0.01, 0.1, 1.0, 10.0, 50.0], 0.02, 400),
    "edge of stability": ([0.01, 0.1, 1.0, 10.0, 95.0], 0.02, 400),
    "saddle": ([-1.0, -0.2, 0.5, 3.0], 0.01, 400),
    "stiff saddle": ([-0.5, 0.1, 1.0, 40.0], 0.02, 400),
    "bulk": (torch.linspace(0.01, 20, 40).tolist(), 0.02, 500),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=OPEN if n == "mild" else ()) for n in QUADRATICS]
)
def test_on_a_quadratic_the_bar_is_calibrated(name):
    eigenvalues, step_size, steps = QUADRATICS[name]
    objective, matrix, theta = quadratic_case(eigenvalues)
    run = beside(objective, step_size, steps)
    covered, ratio = calibration(run, exact_quadratic(matrix, theta, run.times))
    assert covered >= 0.95
    assert ratio <= 10.0


DEEP = {"escape": ([0.6, 0.7, 0.8, 0.9], 0.02), "plateau": ([0.2, 0.1, 0.3], 0.1)}


@pytest.mark.parametrize("name", DEEP)
def test_on_a_scalar_deep_linear_network_the_bar_is_calibrated(name):
    start, step_size = DEEP[name]
    objective = objective_of(Point(start), scalar_deep_linear, torch.ones(1, dtype=F64))
    theta = objective.layout.current(F64)
    run = beside(objective, step_size, 400)
    covered, ratio = calibration(run, reference(objective, theta, run.times))
    assert covered >= 0.95
    assert ratio <= 10.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_a_tanh_network_the_bar_is_calibrated(seed):
    model, data = network(nn.Tanh, seed=seed)
    objective = objective_of(model, squared, data)
    run = beside(objective, 0.05, 200)
    covered, ratio = calibration(
        run, reference(objective, objective.layout.current(F64), run.times)
    )
    assert covered >= 0.95
    assert ratio <= 10.0


def fine_euler(objective, theta, times, substeps):
    """Explicit Euler with ``substeps`` per step: kinks leave no higher order to any method."""
    out, h = [], times[0] / substeps
    for _ in times:
        for _ in range(substeps):
            theta = theta - h * objective.loss_and_grad(theta, "setup")[1]
        out.append(theta)
    return out


@pytest.mark.parametrize("resolution", [None, 0.1])
def test_on_a_relu_network_the_bar_covers_a_fine_step_reference(resolution):
    model, data = network(nn.ReLU, widths=(8, 16, 16, 3), samples=300)
    objective = objective_of(model, squared, data)
    theta = objective.layout.current(F64)
    run = beside(objective, 0.05, 60, resolution=resolution)
    coarse, fine = (fine_euler(objective, theta, run.times, n) for n in (40, 80))
    exact = [2 * b - a for a, b in zip(coarse, fine, strict=True)]  # Richardson, first order
    covered, ratio = calibration(run, exact)
    assert covered >= 0.95
    assert ratio <= 10.0


def test_a_tight_pair_reports_a_bar_that_is_tight_too():
    objective, matrix, theta = quadratic_case([0.1, 0.5, 1.0, 2.0])
    run = beside(objective, 0.05, 100, config=Dopri5(rtol=1e-9))
    errors = run.errors(exact_quadratic(matrix, theta, run.times))
    assert max(errors) < 1e-6
    assert max(run.bars) < 1e-6


def digits(n=80):
    """Real digits, 7 by 7 pixels."""
    drawn = mnist_digits(n, download=False)
    pictures = nn.functional.avg_pool2d(drawn.images.reshape(n, 1, 28, 28).to(F64), 4)
    return pictures, drawn.labels


def kinked_network(kind, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "dense":
            layers = [nn.Flatten(), nn.Linear(49, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(24, 10)).to(F64)
        layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(36, 16), nn.LeakyReLU(), nn.Linear(16, 10)).to(F64)


def plain_heun(objective, theta, times, substeps=6):
    """The flow at ``times``, on plain gradients: it knows nothing of averaged slopes."""
    out, h = [], times[0] / substeps
    for _ in range(len(times) * substeps):
        slope = objective.loss_and_grad(theta, "setup")[1]
        ahead = objective.loss_and_grad(theta - h * slope, "setup")[1]
        theta = theta - 0.5 * h * (slope + ahead)
        out.append(theta)
    return out[substeps - 1 :: substeps]


@pytest.mark.parametrize("kind", ["dense", "pooled"])
def test_across_kinks_on_real_digits_the_bar_holds_and_the_cost_is_kept(kind):
    covered, ratios, costs = [], [], []
    for seed in range(2):
        objective = objective_of(kinked_network(kind, seed), cross_entropy, digits())
        theta = objective.layout.current(F64)
        run = beside(objective, 0.02, 80)
        assert run.flow.rough
        costs.append(run.flow._evals / 80)
        errors = run.errors(plain_heun(objective, theta, run.times))
        pairs = list(zip(run.bars, errors, strict=True))[5:]
        covered += [bar >= error for bar, error in pairs]
        ratios += [bar / error for bar, error in pairs]
    assert sum(covered) / len(covered) >= 0.95
    assert statistics.median(ratios) <= 10.0
    assert max(costs) < 0.4 + 250 / 80 + 0.4  # the pace allows a free start
