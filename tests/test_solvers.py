import inspect
import math
from importlib.metadata import requires, version

import numpy as np
import pytest
import torch
import torchdiffeq
from cases import F64, seeded, symmetric
from numpy.polynomial import chebyshev
from scipy.integrate import solve_ivp
from torchdiffeq._impl.interp import _interp_evaluate
from torchdiffeq._impl.misc import _compute_error_ratio
from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, _RungeKuttaState

from torch_gfshadow.solvers import (
    RKC2,
    Adams2,
    Auto,
    Bosh3,
    Dopri5,
    Dopri8,
    Doubled,
    Stepper,
    register_with_torchdiffeq,
)
from torch_gfshadow.solvers.adams import AdamsStepper
from torch_gfshadow.solvers.base import Node, hermite
from torch_gfshadow.solvers.quadrature import NodeQuadrature, cubic_weights
from torch_gfshadow.solvers.rkc import coefficients, rkc_step, stages_for
from torch_gfshadow.solvers.roughness import SAMPLES, is_rough, roughness

PAIRS = {"bosh3": (Bosh3, 3, 3), "dopri5": (Dopri5, 5, 6), "dopri8": (Dopri8, 8, 13)}
CONFIGS = {"bosh3": Bosh3, "dopri5": Dopri5, "dopri8": Dopri8, "adams2": Adams2}
CONFIGS["doubled"] = Doubled
CONFIGS |= {"auto": Auto, "rkc2": RKC2}


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, theta):
        self.calls += 1
        return self.function(theta)


def pendulum(y):
    """y'' = −sin y: smooth, nonlinear, bounded."""
    return torch.stack([y[1], -torch.sin(y[0])])


def start_at(config, field, state, first_step, time=0.0):
    return config.start(field, Node(time, state, field(state)), first_step)


def fixed_steps(config, field, state, h, steps):
    """Drive a stepper at the fixed step size h."""
    stepper = start_at(config, field, state, h)
    for _ in range(steps):
        assert stepper.step(1e30, h, h)
    return stepper


def swing(t):
    """The pendulum from (1, ½) at time t, by SciPy."""
    out = solve_ivp(
        lambda _, y: [y[1], -math.sin(y[0])], (0, t), [1.0, 0.5], "DOP853", rtol=3e-14, atol=1e-15
    )
    return torch.from_numpy(out.y[:, -1].copy())


LINEAR = symmetric([0.3, 0.8, 1.5, 2.0])
START = torch.tensor([1.0, -0.5, 2.0, 0.7], dtype=F64)


def decay(y):
    return -(LINEAR @ y)


def exact(t):
    return torch.linalg.matrix_exp(-t * LINEAR) @ START


# -- every stepper ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "order", "steps"),
    [("bosh3", 3, 20), ("dopri5", 5, 16), ("adams2", 2, 40), ("rkc2", 2, 20), ("doubled", 5, 8)],
)
def test_halving_the_step_divides_the_error_by_two_to_the_order(name, order, steps):
    error = []
    for n in (steps, 2 * steps):
        stepper = fixed_steps(CONFIGS[name](), decay, START, 2.0 / n, n)
        error.append(float((stepper.right.state - exact(stepper.right.time)).norm()))
    assert math.log2(error[0] / error[1]) == pytest.approx(order, abs=0.35)
    assert stepper.order == order


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "auto"])
def test_halving_the_step_divides_a_nonlinear_error_too(name):
    order = CONFIGS[name]().start(decay, Node(0.0, START, decay(START)), 0.1).order
    start = torch.tensor([1.0, 0.5], dtype=F64)
    truth = swing(2.0)
    steps = 8 if order > 3 else 32
    error = [
        float(
            (fixed_steps(CONFIGS[name](), pendulum, start, 2.0 / n, n).right.state - truth).norm()
        )
        for n in (steps, 2 * steps)
    ]
    assert math.log2(error[0] / error[1]) > order - 0.35


@pytest.mark.parametrize(("name", "order"), [("bosh3", 4), ("dopri5", 5), ("dopri8", 5)])
def test_the_dense_output_of_one_step_has_its_order_inside_the_step(name, order):
    errors = []
    for h in (0.4, 0.2):
        stepper = fixed_steps(CONFIGS[name](), decay, START, h, 1)
        inside = [h * s for s in (0.1, 0.3, 0.5, 0.7, 0.9)]
        errors.append(max(float((stepper.interpolate(t) - exact(t)).norm()) for t in inside))
    assert math.log2(errors[0] / errors[1]) > order - 0.4


def test_the_dense_output_of_adams_is_second_order_inside_the_step():
    errors = []
    for n in (40, 80):
        h = 2.0 / n
        stepper = fixed_steps(Adams2(), decay, START, h, n)
        inside = [stepper.left.time + h * s for s in (0.2, 0.5, 0.8)]
        errors.append(max(float((stepper.interpolate(t) - exact(t)).norm()) for t in inside))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_dense_output_meets_both_ends_of_the_step(name):
    stepper = fixed_steps(CONFIGS[name](), decay, START, 0.1, 6)
    assert isinstance(stepper, Stepper)
    assert stepper.right.time == pytest.approx(0.6)
    at_left = stepper.interpolate(stepper.left.time)
    torch.testing.assert_close(at_left, stepper.left.state, rtol=0, atol=1e-14)
    assert torch.equal(stepper.interpolate(stepper.right.time), stepper.right.state)
    torch.testing.assert_close(stepper.right.field, decay(stepper.right.state), rtol=0, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_trial_step_into_non_finite_values_is_rejected_and_recovered_from(name):
    def field(y):  # only defined for y < 2; the flow stays below 1
        return torch.where(y < 2.0, 1.0 - y, torch.full_like(y, math.nan))

    start = torch.tensor([0.0, -1.0], dtype=F64)
    stepper = start_at(CONFIGS[name](), field, start, 50.0)
    outcomes = [stepper.step(1e-4, 0.0, 0.05 if stepper.next_step < 10.0 else math.inf)]
    assert outcomes == [False]
    assert stepper.right.time == 0.0
    assert stepper.local_error is None
    for _ in range(400):
        stepper.step(1e-4, 0.0, 0.05)
        if stepper.right.time > 1.0:
            break
    want = 1.0 + (start - 1.0) * math.exp(-stepper.right.time)
    torch.testing.assert_close(stepper.right.state, want, rtol=0, atol=2e-3)


# -- torchdiffeq ------------------------------------------------------------------------------


class Watched(torch.nn.Module):
    """odeint's view of the same problem, keeping every accepted node."""

    def __init__(self, field):
        super().__init__()
        self.field, self.calls, self.nodes = field, 0, []

    def forward(self, t, y):
        self.calls += 1
        return self.field(y)

    def callback_accept_step(self, t0, y0, dt):
        self.nodes.append((float(t0), y0.clone()))


def one_call(name, field, state, times, tolerance, first_step):
    watched = Watched(field)
    options = dict(norm=torch.linalg.vector_norm, first_step=first_step, ifactor=5.0)
    with torch.no_grad():
        out = torchdiffeq.odeint(
            watched, state, times, rtol=0.0, atol=tolerance, method=name, options=options
        )
    return out, watched


@pytest.mark.parametrize("name", PAIRS)
def test_a_step_of_a_pair_is_torchdiffeq_s(name):
    start = torch.tensor([1.0, 0.5], dtype=F64)
    field = Counted(pendulum)
    stepper = CONFIGS[name]().start(field, Node(0.0, start, pendulum(start)), 0.29)
    attempts, steps = 0, 0
    while stepper.right.time < 6.0:
        attempts += 1
        if not stepper.step(1e-5):
            continue
        steps += 1
        left, right = stepper.left, stepper.right
        span = torch.tensor([left.time, right.time], dtype=F64)
        out, watched = one_call(name, pendulum, left.state, span, 1e-5, float(span[1] - span[0]))
        if len(watched.nodes) == 1 and right.time == left.time + float(span[1] - span[0]):
            torch.testing.assert_close(out[-1], right.state, rtol=1e-13, atol=1e-13)
    # the known slope at the start is not evaluated again, and no query restarts anything
    stepper.interpolate(0.5 * (stepper.left.time + stepper.right.time))
    assert field.calls == PAIRS[name][2] * attempts
    assert attempts < 40 if name != "bosh3" else attempts < 200


def test_our_interpolant_of_dopri8_is_closer_than_torchdiffeq_s():
    name = "dopri8"
    times = torch.linspace(0.0, 4.0, 60, dtype=F64)
    truth = torch.stack([exact(t) for t in times])
    out, _ = one_call(name, decay, START, times, 1e-7, 0.05)
    stepper = start_at(CONFIGS[name](), decay, START, 0.05)
    ours = [START]
    for t in times.tolist()[1:]:
        while stepper.right.time < t:
            stepper.step(1e-7)
        ours.append(stepper.interpolate(t))
    assert (torch.stack(ours) - truth).norm() < 0.3 * (out - truth).norm()


def test_our_interpolant_of_bosh3_is_closer_than_torchdiffeq_s():
    times = torch.linspace(0.0, 4.0, 60, dtype=F64)
    truth = torch.stack([exact(t) for t in times])
    out, _ = one_call("bosh3", decay, START, times, 1e-3, 0.3)
    stepper = start_at(Bosh3(), decay, START, 0.3)
    ours = [START]
    for t in times.tolist()[1:]:
        while stepper.right.time < t:
            stepper.step(1e-3)
        ours.append(stepper.interpolate(t))
    assert (torch.stack(ours) - truth).norm() < 0.7 * (out - truth).norm()


def test_torchdiffeq_is_the_version_whose_private_parts_we_know():
    assert version("torchdiffeq") == "0.2.5"
    pins = [r for r in requires("torch-gfshadow") or () if r.startswith("torchdiffeq")]
    assert pins == ["torchdiffeq==0.2.5"]


def test_torchdiffeq_has_the_private_parts_we_drive():
    cls = RKAdaptiveStepsizeODESolver
    assert list(inspect.signature(cls._adaptive_step).parameters) == ["self", "rk_state"]
    assert list(inspect.signature(cls._before_integrate).parameters) == ["self", "t"]
    interp = inspect.signature(cls._interp_fit).parameters
    assert list(interp) == ["self", "y0", "y1", "k", "dt"]
    assert _RungeKuttaState._fields == ("y1", "f1", "t0", "t1", "dt", "interp_coeff")
    options = inspect.signature(cls.__init__).parameters
    assert {"func", "y0", "rtol", "atol", "first_step", "ifactor", "max_step"} <= set(options)
    assert list(inspect.signature(_interp_evaluate).parameters) == ["coefficients", "t0", "t1", "t"]
    # the error vector reaches our norm divided by the tolerance: that is how it is read back
    seen = []
    _compute_error_ratio(
        torch.tensor([3.0]),
        torch.tensor(0.0),
        torch.tensor(2.0),
        torch.zeros(1),
        torch.zeros(1),
        lambda scaled: seen.append(scaled) or scaled,
    )
    assert seen[0].item() == 1.5


@pytest.mark.parametrize("name", ["dopri5", "dopri8"])
def test_the_local_error_of_a_pair_is_the_vector_that_was_held_under_the_tolerance(name):
    stepper = start_at(CONFIGS[name](), decay, START, 0.5)
    waiting, graded = 0, 0
    for _ in range(20):
        if stepper.step(1e-6):
            waiting += 1
            if stepper.local_error is None:  # not known yet, and said so by norm
                assert 0.0 < stepper.ungraded <= waiting * 1e-6
                continue
            assert 0.0 < float(stepper.local_error.norm()) <= waiting * 1e-6
            waiting, graded = 0, graded + 1
        else:
            assert stepper.local_error is None
    assert graded >= 5


def test_the_local_errors_of_bosh3_add_up_to_its_global_error_where_nothing_decays():
    # θ' = F(t) in disguise: the clock is a component, so local errors are carried unchanged
    def field(y):
        return torch.stack([torch.ones((), dtype=F64), torch.cos(3.0 * y[0])])

    stepper = start_at(Bosh3(), field, torch.zeros(2, dtype=F64), 0.05)
    total, graded = 0.0, 0
    off, truths = [], []
    while stepper.right.time < 4.0:
        if not stepper.step(1e-4, 0.0, 0.15):
            continue
        graded += 1
        if graded <= 3:  # the first steps have no four nodes yet
            base = float(stepper.left.state[1]) - math.sin(3.0 * stepper.left.time) / 3.0
            continue
        total += float(stepper.local_error[1])  # of the step that ended in the left node
        truth = float(stepper.left.state[1]) - math.sin(3.0 * stepper.left.time) / 3.0 - base
        off.append(abs(total - truth))
        truths.append(abs(truth))
    assert max(truths) > 2e-5
    assert max(off) < 0.7 * max(truths)


def test_bosh3_controls_its_error_by_the_tolerance():
    for tolerance in (1e-3, 1e-5):
        stepper = start_at(Bosh3(), decay, START, 0.01)
        while stepper.right.time < 2.0:
            stepper.step(tolerance)
        error = float((stepper.right.state - exact(stepper.right.time)).norm())
        assert error < 20 * tolerance


def test_a_step_never_exceeds_the_longest():
    for name in CONFIGS:
        stepper = start_at(CONFIGS[name](), decay, START, 0.01)
        for _ in range(30):
            if stepper.step(1.0, 0.0, 0.07):
                assert stepper.right.time - stepper.left.time <= 0.07 * (1 + 1e-12)


def test_solver_configurations_refuse_what_cannot_be():
    with pytest.raises(ValueError, match=r"rtol must be positive, got -1\.0"):
        Dopri5(rtol=-1.0)
    with pytest.raises(ValueError, match="atol must be positive, got 0"):
        Bosh3(atol=0)
    with pytest.raises(ValueError, match="max_evals must be positive"):
        Auto(max_evals=float("nan"))
    with pytest.raises(TypeError, match="dtype must be a floating dtype"):
        Auto(dtype=torch.int64)


def test_tolerances_are_per_component_and_relative_to_the_norm():
    node = Node(0.0, torch.full((100,), 2.0, dtype=F64), torch.zeros(100, dtype=F64))
    assert Bosh3().tolerance(node) is None
    assert Bosh3(atol=1e-3).tolerance(node) == pytest.approx(1e-2)
    assert Bosh3(rtol=1e-3).tolerance(node) == pytest.approx(20e-3)
    assert Bosh3(rtol=1e-3, atol=1e-3).tolerance(node) == pytest.approx(30e-3)


# -- Runge–Kutta–Chebyshev --------------------------------------------------------------------


def interval(s):
    """β(s) of Sommeijer, Shampine & Verwer 1998 for damping 2/13."""
    return 2.0 / 3.0 * (s * s - 1) * (1.0 - 2.0 / 15.0 * 2.0 / 13.0)


def amplification(s, z):
    ones = torch.ones_like(z)
    return rkc_step(lambda y: z * y, ones, z * ones, 1.0, s)


@pytest.mark.parametrize("s", range(2, 21))
def test_rkc_is_stable_on_its_real_interval(s):
    z = torch.linspace(-interval(s), 0.0, 4001, dtype=F64)
    assert float(amplification(s, z).abs().max()) <= 1.0 + 1e-12


@pytest.mark.parametrize("s", [2, 4, 10, 20])  # for odd s it is longer by up to 18 %
def test_rkc_s_interval_is_no_longer_than_claimed_by_much(s):
    z = torch.linspace(-1.1 * interval(s), -1.025 * interval(s), 50, dtype=F64)
    assert float(amplification(s, z).abs().max()) > 1.0


@pytest.mark.parametrize("s", [2, 3, 4, 7, 13, 24])
def test_rkc_s_stability_polynomial_is_the_shifted_chebyshev_polynomial(s):
    w0 = 1.0 + 2.0 / 13.0 / s**2
    unit = np.zeros(s + 1)
    unit[s] = 1.0
    value, first, second = (
        chebyshev.chebval(w0, chebyshev.chebder(unit, m) if m else unit) for m in range(3)
    )
    w1, b = first / second, second / first**2
    z = torch.linspace(-interval(s), 0.5, 101, dtype=F64)
    want = 1.0 - b * value + b * chebyshev.chebval(w0 + w1 * z.numpy(), unit)
    np.testing.assert_allclose(amplification(s, z).numpy(), want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("s", range(2, 21))
def test_rkc_has_order_two_for_every_stage_count(s):
    z = torch.tensor([-1e-3, 1e-3], dtype=F64)
    remainder = amplification(s, z) - (1.0 + z + 0.5 * z * z)
    assert float(remainder.abs().max()) < 0.2 * 1e-9
    start = torch.tensor([1.0, 0.5], dtype=F64)
    truth = swing(1.0)
    errors = []
    for n in (20, 40):
        y = start
        for _ in range(n):
            y = rkc_step(pendulum, y, pendulum(y), 1.0 / n, s)
        errors.append(float((y - truth).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.2)


def test_rkc_s_coefficients_are_those_of_the_two_stage_method():
    # by hand for s = 2: T2 = 2w²−1, T2' = 4w, T2'' = 4
    w0 = 1.0 + 2.0 / 13.0 / 4.0
    b = 4.0 / (4.0 * w0) ** 2
    mu, nu, mu_t, gamma_t = coefficients(2)
    assert mu_t[1] == pytest.approx(b * w0)
    assert mu[2] == pytest.approx(2.0 * w0)
    assert nu[2] == pytest.approx(-1.0)
    assert mu_t[2] == pytest.approx(2.0 * w0)
    assert gamma_t[2] == pytest.approx(-(1.0 - b * w0) * 2.0 * w0)


@pytest.mark.parametrize("s", [2, 5, 10])
def test_rkc_costs_one_evaluation_less_than_its_stages(s):
    field = Counted(decay)
    rkc_step(field, START, decay(START), 0.1, s)
    assert field.calls == s - 1


def test_rkc_leaves_its_arguments_alone():
    state, slope = START.clone(), decay(START)
    before = slope.clone()
    rkc_step(decay, state, slope, 0.1, 6)
    assert torch.equal(state, START)
    assert torch.equal(slope, before)


def test_stages_cover_the_interval_and_are_not_wasted():
    for x in np.logspace(-2, 4, 400):
        s = stages_for(float(x))
        assert interval(s) >= x
        assert s == 2 or interval(s - 1) < 1.02 * x
    assert stages_for(0.0) == stages_for(-3.0) == 2


# -- quadrature -------------------------------------------------------------------------------


def test_cubic_weights_integrate_every_cubic_exactly():
    generator = np.random.default_rng(0)
    for _ in range(20):
        times = np.sort(generator.uniform(-2, 3, 4)) + np.arange(4) * 0.1
        left, right = times[1], times[2]
        weights = cubic_weights(times.tolist(), left, right)
        poly = np.polynomial.Polynomial(generator.normal(size=4))
        want = poly.integ()(right) - poly.integ()(left)
        assert np.dot(weights, poly(times)) == pytest.approx(want, rel=1e-10, abs=1e-12)
        assert sum(weights) == pytest.approx(right - left, rel=1e-12)


def test_cubic_weights_do_not_care_where_time_zero_is():
    near = cubic_weights([0.0, 1e-3, 2e-3, 4e-3], 1e-3, 2e-3)
    far = cubic_weights([1e3, 1e3 + 1e-3, 1e3 + 2e-3, 1e3 + 4e-3], 1e3 + 1e-3, 1e3 + 2e-3)
    assert far == pytest.approx(near, rel=1e-6)


def polynomial_node(t, extra=0.0):
    """A node of y' = (1 + t + t² − 2t³), displaced by ``extra``."""
    y = t + t**2 / 2 + t**3 / 3 - t**4 / 2 + extra
    slope = 1 + t + t**2 - 2 * t**3
    return Node(t, torch.tensor([y], dtype=F64), torch.tensor([slope], dtype=F64))


def test_the_quadrature_finds_exactly_what_a_step_got_wrong():
    big = torch.tensor([1.0], dtype=F64)
    quadrature = NodeQuadrature(polynomial_node(0.0))
    drift = [0.0, 0.0, 0.003, 0.003, 0.0025, 0.0025]
    times = [0.0, 0.1, 0.25, 0.3, 0.5, 0.6]
    found = [
        quadrature.grade(polynomial_node(t, e), big)
        for t, e in zip(times[1:], drift[1:], strict=True)
    ]
    assert torch.equal(found[0], big)  # too few nodes yet: the pair's own estimate
    assert torch.equal(found[1], big)
    # each grade belongs to the step before
    assert float(found[2]) == pytest.approx(0.003, abs=1e-14)
    assert float(found[3]) == pytest.approx(0.0, abs=1e-14)
    assert float(found[4]) == pytest.approx(-0.0005, abs=1e-14)


def test_the_quadrature_yields_to_the_embedded_estimate_where_that_is_far_smaller():
    tiny = torch.tensor([1e-9], dtype=F64)
    quadrature = NodeQuadrature(polynomial_node(0.0))
    for t, drift in ((0.1, 0.0), (0.2, 0.0), (0.3, 0.1)):
        quadrature.grade(polynomial_node(t, drift), tiny)
    # the step to 0.3 seems off by 0.1, the pair says 1e-9: nodes too far apart for a cubic
    assert torch.equal(quadrature.grade(polynomial_node(0.4, 0.1), tiny), 3.0 * tiny)


def test_hermite_is_exact_for_cubics_and_fourth_order_otherwise():
    def node(t):
        y = torch.tensor([t**3 - 2 * t, 5.0], dtype=F64)
        return Node(t, y, torch.tensor([3 * t**2 - 2, 0.0], dtype=F64))

    for t in (1.0, 1.1, 1.7, 2.5):
        torch.testing.assert_close(
            hermite(node(1.0), node(2.5), t), node(t).state, rtol=0, atol=1e-13
        )

    def sine(t):
        y = torch.tensor([math.sin(t)], dtype=F64)
        return Node(t, y, torch.tensor([math.cos(t)], dtype=F64))

    errors = [
        abs(float(hermite(sine(0.3), sine(0.3 + h), 0.3 + 0.5 * h)) - math.sin(0.3 + 0.5 * h))
        for h in (0.2, 0.1)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4.0, abs=0.2)


def test_hermite_over_no_time_is_the_node():
    node = Node(1.0, torch.ones(2, dtype=F64), torch.ones(2, dtype=F64))
    assert torch.equal(hermite(node, node, 1.0), node.state)


# -- roughness --------------------------------------------------------------------------------


class Kinks:
    """∇ of a random two-layer ReLU function: jumps at many random hyperplanes."""

    def __init__(self, seed, dim=20, units=4000, smooth=0.0):
        generator = seeded(seed)
        self.w = torch.randn(units, dim, generator=generator, dtype=F64)
        self.b = torch.randn(units, generator=generator, dtype=F64)
        self.a = torch.randn(units, dim, generator=generator, dtype=F64) / math.sqrt(units)
        self.smooth = smooth

    def __call__(self, y):
        gate = (self.w @ y + self.b > 0).to(F64)
        return 3.0 + gate @ self.a - self.smooth * torch.sin(y)


def at(field, dim=20, seed=5):
    theta = 0.3 * torch.randn(dim, generator=seeded(seed), dtype=F64)
    return Node(0.0, theta, field(theta))


def test_a_smooth_field_has_roughness_four():
    def field(y):
        return -torch.sin(y) - 0.1 * y**3

    for spacing in (3e-3, 1e-2, 3e-2):
        node = at(field)
        assert roughness(field, node, spacing) == pytest.approx(4.0, abs=0.3)
        assert not is_rough(field, node, spacing)


def test_a_field_of_many_kinks_has_roughness_one():
    values = []
    for seed in range(8):
        field = Kinks(seed)
        node = at(field, seed=seed)
        values.append(roughness(field, node, 5e-3))
        assert is_rough(field, node, 5e-3)
    assert sum(values) / len(values) == pytest.approx(1.0, abs=0.4)


def test_where_second_differences_drown_in_rounding_the_field_is_not_rough():
    for field in (lambda y: -y, lambda y: torch.ones_like(y)):
        assert roughness(field, at(field), 1e-3) == math.inf
    noise = seeded(0)

    def rounded(y):  # a float32 field
        return torch.ones_like(y) + 1e-7 * torch.randn(20, generator=noise, dtype=F64)

    assert roughness(rounded, at(rounded), 1e-3) == math.inf


def test_roughness_costs_what_it_says():
    field = Counted(lambda y: -torch.sin(y))
    node = at(field)
    field.calls = 0
    roughness(field, node, 1e-2)
    assert field.calls == SAMPLES


# -- Adams–Bashforth across jumps -------------------------------------------------------------


class RandomWalk:
    """F = (1, W(t)) with W a walk of ``rate`` jumps per unit time, E‖jump‖² = ``variance``/rate.

    The first component is the clock, so the field is autonomous and its integral is known.
    """

    def __init__(self, seed, rate=4000.0, variance=0.5, dim=60, until=3.0):
        generator = seeded(seed)
        n = int(rate * until)
        self.times = torch.sort(until * torch.rand(n, generator=generator, dtype=F64)).values
        jumps = torch.randn(n, dim, generator=generator, dtype=F64)
        jumps *= math.sqrt(variance / rate / dim)
        self.walk = torch.cat([torch.zeros(1, dim, dtype=F64), torch.cumsum(jumps, 0)])
        self.variance = variance

    def trend(self, t):
        return torch.sin(2.0 * t)

    def __call__(self, y):
        i = int(torch.searchsorted(self.times, y[0]))
        return torch.cat([torch.ones(1, dtype=F64), self.walk[i] + self.trend(y[0])])

    def integral(self, t):
        i = int(torch.searchsorted(self.times, torch.tensor(t, dtype=F64)))
        stops = torch.cat([torch.zeros(1), self.times[:i], torch.tensor([t])])
        out = (self.walk[: i + 1] * torch.diff(stops)[:, None]).sum(0)
        return out + 0.5 * (1.0 - math.cos(2.0 * t))


def walked(seed, h, until=2.0):
    field = RandomWalk(seed)
    stepper = start_at(Adams2(), field, torch.zeros(61, dtype=F64), h)
    while stepper.right.time < until:
        assert stepper.step(1e-3, h, h)
    truth = stepper.right.state[1:] - field.integral(stepper.right.time)
    return stepper, float(truth.norm())


@pytest.mark.parametrize("h", [0.005, 0.01, 0.02])
def test_adams_s_error_bar_covers_the_error_across_jumps_and_is_not_far_above(h):
    ratios = []
    for seed in range(8):
        stepper, truth = walked(seed, h)
        ratios.append(stepper.error / truth)
    assert min(ratios) > 1.0
    assert max(ratios) < 6.0


def test_adams_s_error_across_jumps_is_first_order():
    errors = [sum(walked(seed, h)[1] for seed in range(6)) for h in (0.02, 0.01, 0.005)]
    assert 1.5 < errors[0] / errors[1] < 3.0
    assert 1.5 < errors[1] / errors[2] < 3.0


def test_adams_keeps_its_error_bar_near_the_tolerance():
    bars = []
    for tolerance in (4e-3, 1e-3):
        stepper = start_at(Adams2(), RandomWalk(1), torch.zeros(61, dtype=F64), 1e-3)
        while stepper.right.time < 2.0:
            stepper.step(tolerance)
        bars.append(stepper.error / tolerance)
    assert all(0.3 < bar < 2.0 for bar in bars)


def test_adams_does_not_chase_an_error_that_is_there_already():
    stepper = start_at(Adams2(), decay, START, 0.02)
    stepper.inherit(torch.full_like(START, 0.1))
    assert stepper.error == pytest.approx(0.1 * len(START) ** 0.5)
    for _ in range(400):
        stepper.step(1e-2)
    assert stepper.next_step > 3e-4  # a fifth shorter after each pair, it would be 1e-21


def test_adams_carries_an_inherited_error_along_the_flow():
    stepper = start_at(Adams2(), decay, START, 0.01)
    stepper.inherit(torch.tensor([1e-3, -2e-3, 1e-3, 0.0], dtype=F64))
    for _ in range(200):
        stepper.step(1.0, 0.01, 0.01)
    left = torch.linalg.matrix_exp(-stepper.right.time * LINEAR)
    want = float((left @ torch.tensor([1e-3, -2e-3, 1e-3, 0.0], dtype=F64)).norm())
    assert stepper.error == pytest.approx(want, rel=0.15)


def test_adams_costs_three_evaluations_in_two_steps():
    field = Counted(decay)
    stepper = AdamsStepper(field, Node(0.0, START, decay(START)), 0.1)
    for _ in range(10):
        stepper.step(1.0, 0.1, 0.1)
    assert field.calls == 10 + 5 + 2  # each of the two starts with a step of Heun's


class Averages:
    """A field that can average over a stretch, and says over which it was asked to."""

    kinked = True

    def __init__(self):
        self.stretches = []

    def __call__(self, y):
        return decay(y)

    def averaged(self, theta, entered):
        self.stretches.append((entered, theta))
        return decay(theta)


def test_adams_averages_over_stretches_that_meet_end_to_end():
    field, h = Averages(), 0.01
    stepper = AdamsStepper(field, Node(0.0, START, decay(START)), h)
    for k in range(1, 40):
        before = len(field.stretches)
        stepper.step(1.0, h, h)
        entered, middle = field.stretches[-1]  # the companion comes first
        assert len(field.stretches) - before == (1 if k % 2 else 2)
        assert torch.equal(middle, stepper.right.state)
        torch.testing.assert_close(entered, stepper.interpolate((k - 0.5) * h), rtol=0, atol=5e-4)


# -- auto -------------------------------------------------------------------------------------


def test_auto_stays_with_the_pair_on_a_smooth_field():
    stepper = start_at(Auto(), decay, START, 0.1)
    while stepper.right.time < 20.0:
        stepper.step(1e-5)
    assert stepper.name == "auto:dopri5"
    assert not stepper.rough


def test_auto_goes_over_to_adams_across_kinks_and_stands_where_it_stood():
    field = Kinks(0, smooth=1.0)
    stepper = start_at(Auto(), field, at(field).state, 1e-2)
    for _ in range(400):
        before = stepper.right
        stepper.step(1e-4, 1e-3)
        if stepper.rough:
            break
    assert stepper.name == "auto:adams2"
    assert stepper.left is before or stepper.right is before
    assert stepper.left.time < stepper.right.time
    middle = 0.5 * (stepper.left.time + stepper.right.time)
    assert torch.isfinite(stepper.interpolate(middle)).all()
    assert stepper.order == 2
    for _ in range(10):
        assert stepper.step(1e-4, 1e-3)


# -- RKC2 as a solver -------------------------------------------------------------------------


def heat(n=64):
    """u_t = u_xx + u − u³ on [0, 1] with u = 0 at the ends: symmetric and stiff, ρ ≈ 4n²."""
    laplacian = torch.diag(torch.full((n,), -2.0, dtype=F64))
    laplacian += torch.diag(torch.ones(n - 1, dtype=F64), 1)
    laplacian += torch.diag(torch.ones(n - 1, dtype=F64), -1)
    laplacian *= (n + 1) ** 2
    x = torch.linspace(0, 1, n + 2, dtype=F64)[1:-1]
    return (lambda y: laplacian @ y + y - y**3), torch.sin(math.pi * x) + 0.3 * torch.sin(
        5 * math.pi * x
    )


def stiffly(field, state, until):
    out = solve_ivp(
        lambda _, y: field(torch.from_numpy(y)).numpy(),
        (0, until),
        state.numpy(),
        "Radau",
        rtol=1e-10,
        atol=1e-12,
    )
    return torch.from_numpy(out.y[:, -1].copy())


def test_rkc2_solves_a_stiff_diffusion_reaction_equation_with_order_two():
    field, start = heat()
    truth = stiffly(field, start, 0.2)
    errors = []
    for n in (40, 80):
        stepper = fixed_steps(RKC2(), field, start, 0.2 / n, n)
        errors.append(float((stepper.right.state - truth).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.3)
    assert stepper.stiffness == pytest.approx(4 * 65**2, rel=0.2)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_rkc2_controls_its_error_on_a_stiff_problem_for_few_evaluations(tolerance):
    field, start = heat()
    truth = stiffly(field, start, 0.2)
    counted = Counted(field)
    stepper = start_at(RKC2(), counted, start, 1e-4)
    while stepper.right.time < 0.2:
        stepper.step(tolerance, 0.0, 0.2 - stepper.right.time + 1e-15)
    assert float((stepper.right.state - truth).norm()) < 20 * tolerance
    # a pair needs at least 3 evaluations per 2.51/ρ
    assert counted.calls < 0.25 * 3 * 0.2 * 4 * 65**2 / 2.51


def test_the_cost_of_an_rkc2_step_grows_like_the_root_of_the_stiffness():
    costs = []
    for stiffness in (1e2, 1e4):
        rates = torch.tensor([stiffness, 1.0], dtype=F64)
        counted = Counted(lambda y, rates=rates: -rates * y)
        stepper = start_at(RKC2(), counted, torch.tensor([0.0, 1.0], dtype=F64), 0.2)
        while stepper.right.time < 20.0:
            stepper.step(1e-3, 0.0, 0.2, stiffness)
        costs.append(counted.calls)
    assert 5.0 < costs[1] / costs[0] < 12.0


def test_a_stiffness_underrated_by_the_probe_is_found_out():
    rates = torch.tensor([400.0, 1.0], dtype=F64)
    stepper = start_at(RKC2(), lambda y: -rates * y, torch.tensor([1e-6, 1.0], dtype=F64), 0.05)
    while stepper.right.time < 5.0:
        stepper.step(1e-4, 0.0, math.inf, 40.0)
    assert float((stepper.right.state - torch.exp(-rates * stepper.right.time)).norm()) < 5e-4
    assert stepper.stiffness == pytest.approx(1.2 * 400.0, rel=0.1)


def test_the_local_errors_of_rkc2_add_up_to_its_error():
    def field(y):  # the clock is a component, so local errors are carried unchanged
        return torch.stack([torch.ones((), dtype=F64), torch.cos(3.0 * y[0])])

    stepper = start_at(RKC2(), field, torch.zeros(2, dtype=F64), 0.05)
    total = 0.0
    while stepper.right.time < 4.0:
        if stepper.step(1e-4, 0.0, 0.15):
            total += float(stepper.local_error[1])
    truth = float(stepper.right.state[1]) - math.sin(3.0 * stepper.right.time) / 3.0
    assert total == pytest.approx(truth, rel=0.5, abs=1e-4)


def test_auto_goes_over_to_rkc2_where_the_pair_is_held_by_stability():
    rates = torch.tensor([300.0, 1.0, 0.1], dtype=F64)
    counted = Counted(lambda y: -rates * y)
    stepper = start_at(Auto(), counted, torch.ones(3, dtype=F64), 1e-3)
    while stepper.right.time < 10.0:
        stepper.step(1e-4)
    assert stepper.name == "auto:rkc2"
    exact_now = torch.exp(-rates * stepper.right.time)
    assert float((stepper.right.state - exact_now).norm()) < 2e-3
    assert counted.calls < 0.3 * 6 * 10.0 * 300.0 / 3.31


def test_rkc2_can_be_used_from_torchdiffeq():
    register_with_torchdiffeq()
    field, start = heat()
    calls = []

    def forced(t, y):
        calls.append(1)
        return field(y) + torch.sin(3.0 * t)

    times = torch.linspace(0.0, 0.2, 5, dtype=F64)
    y = torchdiffeq.odeint(forced, start, times, method="rkc2", rtol=1e-5, atol=1e-6)
    out = solve_ivp(
        lambda t, u: (field(torch.from_numpy(u)) + math.sin(3.0 * t)).numpy(),
        (0, 0.2),
        start.numpy(),
        "Radau",
        t_eval=times.numpy(),
        rtol=1e-10,
        atol=1e-12,
    )
    assert float((y - torch.from_numpy(out.y.T.copy())).abs().max()) < 3e-4
    assert len(calls) < 800
    with pytest.raises(ValueError, match="y0 must be a real tensor without gradient"):
        torchdiffeq.odeint(forced, start.requires_grad_(), times, method="rkc2")
