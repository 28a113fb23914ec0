"""The bound is sound and certified where flow and smoothness are known, and knows its limits."""

import math

import gfshadow_lipschitz
import pytest
import torch
from gfshadow_lipschitz.bound import LipschitzBound, _second_integral
from scipy.integrate import quad

import torch_gfshadow as gfs
from torch_gfshadow.errors import AssumptionError
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.testing import (
    assert_bound_sound,
    assert_hooks_valid,
    closed_forms,
    isolated_plugins,
    make_record,
)

CASES = {case.name: case for case in closed_forms()}


def bound_for(case):
    if math.isinf(case.smoothness):
        raise AssumptionError("f must be globally smooth")
    return LipschitzBound(case.smoothness, max(-case.curvature_min, -case.smoothness))


def test_its_hooks_are_valid_and_it_is_built_by_name():
    assert_hooks_valid(gfshadow_lipschitz)
    with isolated_plugins():
        bound = Plugins([gfshadow_lipschitz]).build("bounds", "lipschitz:2.5")
    assert (bound.smoothness, bound.curvature) == (2.5, 2.5)


def test_it_is_sound_where_the_flow_is_known_with_the_exact_constants():
    assert_bound_sound(bound_for)


def test_it_is_sound_with_the_smoothness_alone():
    assert_bound_sound(lambda case: LipschitzBound(bound_for(case).smoothness))


def test_it_is_certified_and_within_a_factor_on_a_convex_quadratic():
    case = CASES["convex quadratic"]
    bound = bound_for(case)
    for record in case.records():
        value = bound.update(record)
        assert value.certified
        assert record.discrepancy <= value.value * (1 + 1e-9)
    assert value.value < 50 * record.discrepancy


@pytest.mark.parametrize("z", [-30.0, -0.5, -0.49, -1e-9, 0.0, 1e-9, 0.49, 0.51, 5.0])
def test_the_integral_is_the_integral(z):
    exact = quad(lambda s: math.exp(z * (1 - s)) * s, 0.0, 1.0, epsabs=1e-15)[0]
    assert _second_integral(z) == pytest.approx(exact, rel=1e-12)


def test_a_ritz_value_above_beta_ends_it_for_good():
    bound = LipschitzBound(1.0)
    assert bound.update(make_record(0, lambda_max=0.9, lambda_min=0.1)).status == "ok"
    for step, lambda_max in ((1, 1.5), (2, 0.5)):
        value = bound.update(make_record(step, lambda_max=lambda_max, lambda_min=0.1))
        assert value.value == math.inf
        assert "‖∇²f‖ is at least 1.5 at step 1, so β is too small" in value.status


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": 3}, "step 3 follows step 0; record every step"),
        ({"grad_norm": None}, "step 1 has no grad_norm"),
        ({"step_size": math.nan}, "step 1 has no step_size"),
        ({"flow": "momentum"}, "the flow followed is momentum"),
    ],
)
def test_without_its_ingredients_there_is_no_bound(change, reason):
    bound = LipschitzBound(10.0)
    bound.update(make_record(0))
    value = bound.update(make_record(**{"step": 1, **change}))
    assert (value.value, value.status) == (math.inf, f"No bound: {reason}.")


def test_a_gradient_that_is_not_the_objectives_takes_the_certificate_away():
    bound = LipschitzBound(10.0)
    assert bound.update(make_record(0)).certified
    assert not bound.update(make_record(1, audit="mismatch")).certified
    assert not bound.update(make_record(2, audit="match")).certified


def test_an_overflow_is_infinite_and_says_so():
    bound = LipschitzBound(1e4)
    values = [bound.update(make_record(k, step_size=0.05, lambda_max=1.0)) for k in range(4)]
    assert values[-1].value == math.inf
    assert "exceeds every float" in values[-1].status


def test_it_holds_beside_logistic_regression():
    torch.manual_seed(0)
    x = torch.randn(50, 5, dtype=torch.float64)
    y = (x[:, :1] > 0).double()
    beta = float(torch.linalg.matrix_norm(x, 2) ** 2) / (4 * len(x))
    model = torch.nn.Linear(5, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)

    def objective(model, batch):
        return torch.nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    with isolated_plugins():
        bounds = [LipschitzBound(beta, 0.0)]
        shadow = gfs.attach(
            optimizer, model, objective, data=(x, y), bounds=bounds, probe_every=1, on_error="raise"
        )
    for _ in range(40):
        optimizer.zero_grad()
        objective(model, (x, y)).backward()
        optimizer.step()
    for record in shadow.records[1:]:
        cell = record.bounds["lipschitz"]
        assert record.discrepancy - record.solver_error <= cell["value"] < 1000 * record.discrepancy
    assert shadow.records[1].bounds["lipschitz"]["certified"]


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan, "big"])
def test_a_smoothness_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="smoothness must be positive and finite"):
        LipschitzBound(wrong)


def test_a_curvature_beyond_the_smoothness_is_refused():
    with pytest.raises(ValueError, match="curvature must be between −1 and 1, got 2"):
        LipschitzBound(1.0, 2)
