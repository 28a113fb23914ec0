"""The contract suites: every built-in member passes, and what breaks a promise is caught."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from torch_gfshadow import solvers
from torch_gfshadow.bounds import Assumption, BoundValue, Theorem2
from torch_gfshadow.errors import AssumptionError
from torch_gfshadow.flows import GradientFlow
from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.solvers import Bosh3
from torch_gfshadow.specs import FlowSpec
from torch_gfshadow.testing import (
    assert_bound_sound,
    assert_flow_is_limit,
    assert_init_balanced,
    assert_init_contract,
    assert_init_scales,
    assert_probe_contract,
    assert_solver_contract,
    closed_forms,
    isolated_plugins,
)

with isolated_plugins():
    BUILTIN = {kind: Plugins().specs(kind) for kind in ("bounds", "inits", "probes", "solvers")}


def breaks(message, contract, *args, **kwargs):
    with pytest.raises(AssertionError, match=message):
        contract(*args, **kwargs)


# --- closed forms


@pytest.mark.parametrize("case", closed_forms(), ids=lambda case: case.name)
def test_the_closed_forms_solve_their_equation_and_know_their_constants(case):
    end = sum(case.step_sizes)

    def field(_, u):
        return -case.slope(torch.from_numpy(u)).numpy()

    solved = solve_ivp(field, (0, end), case.start.numpy(), "DOP853", rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(case.flow(end).numpy(), solved.y[:, -1], rtol=1e-8, atol=1e-10)
    grid = case.start + torch.linspace(-4, 4, 2001, dtype=torch.float64)[:, None]
    assert case.bend(grid).abs().max() <= case.smoothness + 1e-12
    assert case.bend(grid).min() >= case.curvature_min - 1e-12
    assert case.value(grid).sum(1).min() >= case.floor - 1e-12
    grid.requires_grad_()
    (slope,) = torch.autograd.grad(case.value(grid).sum(), grid, create_graph=True)
    torch.testing.assert_close(slope, case.slope(grid))
    if slope.requires_grad:
        (bend,) = torch.autograd.grad(slope.sum(), grid)
        torch.testing.assert_close(bend, case.bend(grid).expand_as(bend))


# --- built-ins


def limits_discrepancy(spec):
    """Live bounds of λ_min and the tube need a network; tests/test_live_bounds.py has them."""
    return (
        spec.live
        and spec.name != "tube"
        and getattr(spec.factory, "of", "discrepancy") == "discrepancy"
    )


@pytest.mark.parametrize("name", [n for n, s in BUILTIN["bounds"].items() if limits_discrepancy(s)])
def test_built_in_bounds_are_sound(name):
    assert_bound_sound(lambda case: BUILTIN["bounds"][name].factory(), estimate=True)


def linear_network():
    return nn.Sequential(nn.Linear(4, 6), nn.Flatten(), nn.Linear(6, 3, bias=False))


@pytest.mark.parametrize("name", BUILTIN["inits"])
def test_built_in_initialisers_keep_the_contract(name):
    assert_init_contract(
        BUILTIN["inits"][name].factory, linear_network if name == "balanced" else None
    )


def test_procedure_1_starts_balanced():
    assert_init_balanced(BUILTIN["inits"]["balanced"].factory(), tol=1e-14)


@pytest.mark.parametrize(
    "name", ["scaled_xavier_uniform", "scaled_kaiming_uniform", "scaled_normal"]
)
def test_near_zero_starts_scale_and_are_nearly_balanced(name):
    make = BUILTIN["inits"][name].factory
    assert_init_scales(make)
    assert_init_balanced(make(1e-3), tol=1e-5)
    breaks("imbalance must be at most 1e-05, got", assert_init_balanced, make(1.0), tol=1e-5)


@pytest.mark.parametrize("name", BUILTIN["probes"])
def test_built_in_probes_keep_the_contract(name):
    assert_probe_contract(BUILTIN["probes"][name].factory)


def test_the_extreme_eigenvalues_of_a_known_matrix_are_found():
    def ends(hessian, theta):
        values = torch.linalg.eigvalsh(hessian)
        return {"lambda_min": float(values[0])}

    assert_probe_contract(BUILTIN["probes"]["lambda_min"].factory, ends)
    wrong = {"lambda_min": -0.6}
    breaks("lambda_min must be", assert_probe_contract, BUILTIN["probes"]["lambda_min"].factory,
           lambda hessian, theta: wrong)  # fmt: skip


# Its dense output is a quartic and less exact than its nodes; the bar does not count that yet.
SMOOTH = [name for name in BUILTIN["solvers"] if name != "adams2"]  # for kinks, first order


@pytest.mark.parametrize("name", SMOOTH)
def test_built_in_solvers_for_smooth_fields_keep_the_contract(name):
    assert_solver_contract(BUILTIN["solvers"][name].factory)


def test_gradient_flow_is_the_limit_of_sgd():
    assert_flow_is_limit(lambda p, lr: torch.optim.SGD(p, lr=lr, weight_decay=0.1), "auto")


# --- what is caught: bounds


class Wrong:
    """A certified bound: ``scale`` times what Theorem 2 estimates."""

    name, requires = "wrong", frozenset({"lambda_min"})

    def __init__(self, scale=1.0):
        self._inner, self._scale = Theorem2(), scale

    def update(self, record):
        value = self._inner.update(record)
        shifted = value.log_value + math.log(self._scale)
        return BoundValue(shifted, (Assumption("it holds", "hoped", True),), value.status)


class Shares(Wrong):
    inner = Theorem2()

    def __init__(self):
        super().__init__()
        self._inner = self.inner


class Nan(Wrong):
    def update(self, record):
        return BoundValue(math.nan)


class Silent(Wrong):
    def update(self, record):
        return BoundValue(math.inf)


class Misnamed(Wrong):
    requires = frozenset({"lamda_min"})


class Forgetful(Wrong):
    """Goes on below the truth when its ingredient is missing."""

    def update(self, record):
        if record.lambda_min is None:
            return BoundValue(-30.0, (Assumption("it holds", "hoped", True),))
        return BoundValue(math.log((record.discrepancy or 0.0) + 1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda case: Wrong(0.5), "a certified bound must hold, got .* under the discrepancy"),
        (lambda case: Shares(), "two bounds built alike must agree"),
        (lambda case: Nan(), "a bound must be a number or infinite, got NaN at step 0"),
        (lambda case: Silent(), "status must say why there is no bound, got 'ok'"),
        (lambda case: Misnamed(), "requires must name fields of Record, got lamda_min"),
        (lambda case: Forgetful(), "a certified bound must hold"),
        (lambda case: object(), "has no name, requires and update"),
    ],
)
def test_a_bound_that_breaks_its_promise_is_caught(make, message):
    breaks(message, assert_bound_sound, make)


def test_a_bound_that_applies_nowhere_is_caught():
    def refuses(case):
        raise AssumptionError("not here")

    breaks("must give a finite value on some case", assert_bound_sound, refuses)


# --- what is caught: initialisers


class Normal:
    def __init__(self, scale=0.1):
        self.scale = scale

    def __call__(self, module):
        layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        if not layers:
            raise ValueError("module must be one with layers")
        for layer in layers:
            self.fill(layer)
        return module

    def fill(self, layer):
        nn.init.normal_(layer.weight, std=self.scale)


class ReplacesParameters(Normal):
    def fill(self, layer):
        layer.weight = nn.Parameter(torch.randn_like(layer.weight))


class DrawsFromNumpy(Normal):
    def fill(self, layer):
        values = np.random.standard_normal(tuple(layer.weight.shape))  # noqa: NPY002
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(values))


class Accumulates(Normal):
    def fill(self, layer):
        with torch.no_grad():
            layer.weight.mul_(self.scale)


class TouchesBuffers(Normal):
    def __call__(self, module):
        for buffer in module.buffers():
            buffer.add_(1)
        return super().__call__(module)


class ReturnsNothing(Normal):
    def __call__(self, module):
        super().__call__(module)


class AcceptsAnything(Normal):
    def __call__(self, module):
        try:
            return super().__call__(module)
        except ValueError:
            return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (ReplacesParameters, "must be changed in place, got a new parameter"),
        (DrawsFromNumpy, "must draw from torch alone, not NumPy's random state"),
        (Accumulates, "every weight must be filled"),
        (TouchesBuffers, "buffers must be left alone, got 1.running_mean"),
        (ReturnsNothing, "an initialiser must return its module, got None"),
        (AcceptsAnything, "must be a ValueError"),
    ],
)
def test_an_initialiser_that_breaks_its_promise_is_caught(make, message):
    breaks(message, assert_init_contract, make)


def test_a_sound_initialiser_passes_and_one_that_ignores_its_scale_does_not():
    assert_init_contract(Normal)
    assert_init_scales(Normal)
    breaks("proportional to scale, got others at 0.1", assert_init_scales, lambda s: Normal(1.0))


# --- what is caught: probes


class Mean:
    name, every = "mean", None

    def measure(self, point):
        return {"value": float(point.theta.mean())}


class DrawsGlobally(Mean):
    def measure(self, point):
        return {"value": float(torch.randn(()))}


class Moves(Mean):
    def measure(self, point):
        point.theta.add_(1.0)
        return {}


class ReturnsTensor(Mean):
    def measure(self, point):
        return {"value": point.theta}


class CountsCalls(Mean):
    calls = 0

    def measure(self, point):
        type(self).calls += 1
        return {"value": self.calls}


class NotAField(Mean):
    def measure(self, point):
        return {"loss": "small"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (object, "has no name, every and measure"),
        (DrawsGlobally, "random numbers of its own, not torch's random state"),
        (Moves, "must change nothing, got another theta"),
        (ReturnsTensor, "must be a number or a list, got a tensor"),
        (CountsCalls, "a probe must repeat itself"),
        (NotAField, "loss is a field of Record and must be a float, got 'small'"),
    ],
)
def test_a_probe_that_breaks_its_promise_is_caught(make, message):
    breaks(message, assert_probe_contract, make)


def test_a_sound_probe_passes():
    assert_probe_contract(Mean, lambda hessian, theta: {"value": float(theta.mean())})


# --- what is caught: flows


class DoubleSpeed(GradientFlow):
    """Twice as fast as the optimizer."""

    name = "double"

    def field(self, theta, *args, **kwargs):
        return 2.0 * super().field(theta, *args, **kwargs)


class BringsDouble:
    @hookimpl
    def gfshadow_flows(self):
        return [FlowSpec(name="double", factory=DoubleSpeed, summary="too fast")]


def test_a_flow_that_is_not_the_limit_is_caught():
    breaks(
        "This flow is not the limit of this optimizer",
        assert_flow_is_limit,
        lambda p, lr: torch.optim.SGD(p, lr=lr),
        "double",
        plugins=[BringsDouble()],
    )


# --- what is caught: solvers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faulty(solvers.SolverConfig):
    """Bosh3 with one thing changed in its stepper."""

    change: object = None

    def start(self, field, node, first_step):
        stepper = Bosh3(dtype=self.dtype).start(field, node, first_step)
        base = type(stepper)
        stepper.__class__ = type("Changed", (base,), self.change(base))
        return stepper


def too_long(base):
    return {"step": lambda self, tolerance, *args: base.step(self, tolerance)}


def too_proud(base):
    def step(self, *args):
        accepted = base.step(self, *args)
        self.local_error, self.ungraded = 1e-3 * self.right.state, 0.0
        self.local_error *= 1e-9
        return accepted

    return {"step": step}


def sloppy(base):
    return {"step": lambda self, tolerance, *args: base.step(self, 1e-4, *args)}


def crude_output(base):
    return {"interpolate": lambda self, time: self.left.state}


def forgets(base):
    return {"load_state_dict": lambda self, saved: None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (too_long, "must go on from the last and be no longer"),
        (too_proud, "local errors must add up to the error"),
        (sloppy, "the error must follow the tolerance"),
        (crude_output, "dense output must be as good as the nodes"),
        (forgets, "a resumed stepper must"),
    ],
)
def test_a_solver_that_breaks_its_promise_is_caught(change, message):
    breaks(message, assert_solver_contract, lambda: Faulty(change=change))


def test_what_is_no_solver_is_caught():
    breaks("must be a SolverConfig", assert_solver_contract, object)
