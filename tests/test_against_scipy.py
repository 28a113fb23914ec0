"""attach() on networks, refereed by SciPy's solve_ivp and NumPy's dense eigenvalues."""

import itertools

import numpy as np
import pytest
import torch
from cases import F64, Point, network, objective_of, reference, scalar_deep_linear, squared
from torch import nn

import torch_gfshadow as gfs
from torch_gfshadow.solvers import Dopri5, Dopri8

STEPS = 100


def attached(model, fn, data, lr, steps=STEPS, **options):
    """Train; return records, iterates and the flow's starting point."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    flat = nn.utils.parameters_to_vector
    start = flat(model.parameters()).detach().clone()
    iterates = [start]
    options = {"probes": ()} | options
    with gfs.attach(optimizer, model, fn, data=data, on_error="raise", **options) as shadow:
        for _ in range(steps):
            optimizer.zero_grad()
            fn(model, data).backward()
            optimizer.step()
            iterates.append(flat(model.parameters()).detach().clone())
    return shadow.records, iterates, start


def truth(model, fn, data, start, iterates, times):
    flow = reference(objective_of(model, fn, data), start, times, rtol=1e-12)
    return [float((a - b).norm()) for a, b in zip(iterates, flow, strict=True)], flow


@pytest.mark.parametrize("solver", [Dopri5(rtol=1e-9), Dopri8(rtol=1e-9)])
def test_a_tight_shadow_of_a_tanh_network_is_scipy_s(solver):
    model, data = network(nn.Tanh, seed=2)
    records, iterates, start = attached(model, squared, data, 0.05, 40, solver=solver)
    exact, _ = truth(model, squared, data, start, iterates, [r.time for r in records])
    np.testing.assert_allclose([r.discrepancy for r in records], exact, rtol=1e-4, atol=1e-9)


def test_the_default_shadow_of_a_tanh_network_is_scipy_s_to_ten_percent():
    model, data = network(nn.Tanh, seed=0)
    records, iterates, start = attached(model, squared, data, 0.05)
    exact, flow = truth(model, squared, data, start, iterates, [r.time for r in records])
    for r, e in zip(records, exact, strict=True):
        assert r.discrepancy == pytest.approx(e, rel=0.1, abs=1e-13)
    objective = objective_of(model, squared, data)
    for r, point in list(zip(records, flow, strict=True))[::10]:
        assert r.shadow_loss == pytest.approx(objective.loss(point, "loss"), rel=1e-3)


def test_the_shadow_of_an_unbalanced_deep_linear_network_is_scipy_s():
    start = [0.6, 0.7, 0.8, 0.9]
    target = torch.ones(1, dtype=F64)
    model = Point(start)
    records, iterates, start = attached(model, scalar_deep_linear, target, 0.02)
    times = [r.time for r in records]
    exact, _ = truth(model, scalar_deep_linear, target, start, iterates, times)
    for r, e in zip(records, exact, strict=True):
        assert r.discrepancy == pytest.approx(e, rel=0.1, abs=1e-13)


def test_gradient_descent_on_a_tanh_network_converges_to_its_flow_with_order_one():
    etas, found = [0.1, 0.05, 0.025], []
    for eta in etas:
        model, data = network(nn.Tanh, seed=0)
        records, _, _ = attached(model, squared, data, eta, round(3.0 / eta), every=round(3 / eta))
        found.append(records[-1].discrepancy)
    slope = np.polyfit(np.log(etas), np.log(found), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.15)


def test_the_flow_of_a_tanh_network_never_raises_the_loss():
    model, data = network(nn.Tanh, seed=1)
    records, _, _ = attached(model, squared, data, 0.05)
    losses = [r.shadow_loss for r in records]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(losses))


def test_probes_inside_a_run_are_the_dense_hessian_s_eigenvalues():
    model, data = network(nn.Tanh, widths=(3, 5, 2))
    probes = ("lambda_min", "lambda_max")
    records, iterates, _ = attached(model, squared, data, 0.05, 30, probes=probes, probe_every=10)
    names = [n for n, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(theta):
        parts = torch.split(theta, [s.numel() for s in shapes])
        named = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        out = torch.func.functional_call(model, named, (data[0],))
        return 0.5 * ((out - data[1]) ** 2).sum(-1).mean()

    for k in (0, 10, 20, 30):
        r = records[k]
        values = np.linalg.eigvalsh(torch.autograd.functional.hessian(loss, iterates[k]).numpy())
        assert abs(r.lambda_min - values[0]) <= r.lambda_min_residual + 1e-9
        assert abs(r.lambda_max - values[-1]) <= r.lambda_max_residual + 1e-9
        assert r.lambda_max_residual < 0.05 * values[-1]
        assert r.edge == pytest.approx(0.05 * r.lambda_max)
    assert all(r.lambda_max is None and r.edge is None for r in records if r.step % 10)
