"""Results on given numbers: limits, overflow, monotonicity, refusals, and what they rest on."""

import math

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from torch_gfshadow import bounds
from torch_gfshadow.bounds import gfshadow_bounds
from torch_gfshadow.bounds.worst_case import gradient, hessian, necessary_step_size, ridge
from torch_gfshadow.errors import AssumptionError
from torch_gfshadow.families import KINDS
from torch_gfshadow.plugins import Plugins

EQ7 = dict(breaks=[0, 1, 2], m=[0.5, -0.3], beta=2.0, gamma=3.0, eps=0.1)
COR1 = dict(m=0.5, beta=2.0, f0=1.0, eps=0.1, init_dist=0.0, horizon=5.0)
PROP2 = dict(n=3, d0=5, dn=1, grad_fro=0.8, grad_spec=0.8, end_to_end_spec=0.3,
             W_specs=[0.7, 0.7, 0.6], eps=0.1)  # fmt: skip
PROP3 = dict(n=3, r0=0.2, nu=0.5, eps_bar=0.05, eps=0.1)
THM4 = dict(n=3, r0=0.2, nu=0.5, eps_tilde=0.1)


# --- Theorem 3


def equation7_on_a_grid(breaks, m, beta, gamma, eps, init_dist=0.0):
    """The infimum of Equation 7 by brute force: SciPy for μ and I, a fine grid for the infimum."""
    best, state = math.inf, [0.0, 0.0]
    for i in range(len(m)):
        times = np.linspace(breaks[i], breaks[i + 1], 400)
        out = solve_ivp(
            lambda t, y, i=i: [m[i], m[i] * y[1] + 1.0],
            (times[0], times[-1]), state, t_eval=times, rtol=1e-11, atol=1e-14,
        )  # fmt: skip
        mu, integral = out.y[0][1:], out.y[1][1:]
        state = out.y[:, -1]
        best = min(best, float(((eps - np.exp(mu) * init_dist) / (beta * gamma * integral)).min()))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_equation_7_is_the_infimum_over_all_times(seed):
    rng = np.random.default_rng(seed)
    breaks = np.r_[0.0, np.cumsum(rng.uniform(0.2, 1.5, 5))]
    inputs = dict(breaks=breaks, m=rng.normal(0, 1.0, 5), beta=1.7, gamma=0.6, eps=0.3)
    inputs["init_dist"] = rng.uniform(0, 1e-3)
    found = bounds.theorem3(**inputs)
    assert found.value["eta"] == pytest.approx(equation7_on_a_grid(**inputs), rel=1e-6)
    assert found.certified


def test_a_start_at_the_very_edge_is_feasible_only_where_the_flow_contracts():
    inputs = dict(breaks=[0, 1], beta=1.0, gamma=1.0, eps=0.1, init_dist=0.1)
    assert bounds.theorem3(m=[-0.5], **inputs).value["eta"] == pytest.approx(0.05)
    for m in (0.0, 0.5):
        refused = bounds.theorem3(m=[m], **inputs)
        assert refused.value == {"feasible": False, "eta": 0.0, "log_eta": None, "argmin_t": None}
        assert refused.status.startswith("infeasible")


def test_a_start_outside_is_infeasible_even_if_the_flow_contracts():
    outside = bounds.theorem3([0, 100], [-2.0], 1.0, 1.0, eps=0.1, init_dist=0.11)
    assert not outside.value["feasible"]


@pytest.mark.parametrize("m", [1e-13, -1e-13, 0.0])
def test_a_vanishing_curvature_has_the_limit_of_none(m):
    assert bounds.theorem3([0, 4], m, 1.0, 2.0, 0.1).value["eta"] == pytest.approx(
        0.0125, rel=1e-12
    )


def test_a_huge_exponent_has_a_logarithm():
    found = bounds.theorem3([0, 1.0], 1e4, 1.0, 1.0, 0.1).value
    assert found["eta"] == 0.0
    assert found["log_eta"] == pytest.approx(math.log(0.1) - 1e4 + math.log(1e4), rel=1e-12)


def test_pieces_of_length_zero_are_nothing():
    with_gap = bounds.theorem3([0, 1, 1, 2], [0.5, 99.0, -0.3], 2.0, 3.0, 0.1)
    assert with_gap.value == bounds.theorem3(**EQ7).value


def test_half_steps_double_the_limit_where_nothing_contracts_and_less_elsewhere():
    plain = bounds.theorem3([0, 1, 2], [0.5, 0.0], 2.0, 3.0, 0.1).value["eta"]
    assert bounds.theorem3(
        [0, 1, 2], [0.5, 0.0], 2.0, 3.0, 0.1, half_step=True
    ).value["eta"] == pytest.approx(2 * plain, rel=1e-14)  # fmt: skip
    plain = bounds.theorem3(**EQ7).value["eta"]
    eta = bounds.theorem3(**EQ7, half_step=True).value["eta"]
    assert eta * math.exp(0.3 * eta) == pytest.approx(2 * plain, rel=1e-13)


def test_constants_per_piece_are_no_worse_than_the_largest_of_them():
    shared = dict(breaks=[0, 1, 2, 3], m=[0.2, 0.1, -0.1], eps=0.1)
    largest = bounds.theorem3(beta=3.0, gamma=2.0, **shared).value["eta"]
    single = bounds.theorem3(beta=[3.0] * 3, gamma=[2.0] * 3, **shared).value["eta"]
    varying = bounds.theorem3(beta=[3.0, 1.0, 0.5], gamma=[2.0, 1.0, 1.0], **shared).value["eta"]
    assert single == largest < varying


def test_a_step_may_not_span_pieces_whose_constants_differ():
    easy = bounds.theorem3([0, 1e-3, 1], 0.0, [1e-3, 2e-3], 1e-3, eps=1.0)
    assert easy.value["eta"] == pytest.approx(1e-3)


@pytest.mark.parametrize("name", ["m", "beta", "gamma", "init_dist"])
def test_a_larger_constant_means_a_smaller_step(name):
    base = {**EQ7, "init_dist": 0.01}
    larger = dict(base)
    larger[name] = [v + 0.1 for v in base[name]] if name == "m" else base[name] * 1.1
    assert bounds.theorem3(**larger).value["eta"] < bounds.theorem3(**base).value["eta"]


def test_sampled_constants_make_an_estimate():
    assert bounds.theorem3(**EQ7).certified
    assert not bounds.theorem3(**EQ7, constants_are="sampled").certified
    assert not bounds.corollary1(**COR1, constants_are="sampled").certified


# --- Corollary 1


@pytest.mark.parametrize("m", [-0.7, 0.0, 0.4])
def test_the_exact_infimum_is_theorem_3_with_constants(m):
    found = bounds.corollary1(**{**COR1, "m": m, "init_dist": 1e-3}).value
    gamma = math.sqrt(2 * 2.0 * 1.0) + 2.0 * 0.1
    direct = bounds.theorem3([0, 5.0], m, 2.0, gamma, 0.1, 1e-3).value["eta"]
    assert found["eta_exact_infimum"] == pytest.approx(direct, rel=1e-13)
    assert found["eta"] <= found["eta_exact_infimum"] * (1 + 1e-12)


def deviation(x0, eta, horizon):
    """Largest distance between GD and the flow of f = 1 − cos x up to the horizon."""
    steps = int(horizon / eta)
    x, gd = x0, [x0]
    for _ in range(steps):
        x -= eta * math.sin(x)
        gd.append(x)
    times = eta * np.arange(steps + 1)
    flow = 2 * np.arctan(math.tan(x0 / 2) * np.exp(-times))
    return float(np.abs(np.array(gd) - flow).max())


@pytest.mark.parametrize("horizon", [5.0, 10.0])
def test_the_printed_case_is_refuted_and_the_corrected_one_holds(horizon):
    """f = 1 − cos x, β = m = 1, started near the maximum."""
    x0, eps = math.pi - math.exp(-(horizon - 0.5)), 0.1
    f0 = 1 - math.cos(x0)
    c = 1 / (math.sqrt(2 * f0) + eps)
    printed = c * eps * math.exp(horizon) / (math.exp(horizon) - 1)
    corrected = bounds.corollary1(1.0, 1.0, f0, eps, 0.0, horizon).value["eta"]
    assert deviation(x0, printed, horizon) > 0.9 * eps
    if horizon == 10.0:
        assert deviation(x0, printed, horizon) > 2 * eps
    assert deviation(x0, max(corrected, 2e-4), horizon) < eps


def test_the_start_gradient_can_only_help():
    plain = bounds.corollary1(**COR1).value["eta"]
    assert bounds.corollary1(**COR1, grad_norm=0.01).value["eta"] > plain
    assert bounds.corollary1(**COR1, grad_norm=1e9).value["eta"] == plain


def test_half_steps_double_corollary_1():
    plain = bounds.corollary1(**COR1).value["eta"]
    assert bounds.corollary1(**COR1, half_step=True).value["eta"] == pytest.approx(2 * plain)


def test_corollary_1_is_infeasible_where_the_flows_part():
    for change in ({"init_dist": 0.05}, {"m": -0.5, "init_dist": 0.2}, {"m": 0, "init_dist": 0.1}):
        found = bounds.corollary1(**{**COR1, **change})
        assert (found.value["eta"], found.value["log_eta"]) == (0.0, None)
        assert found.status.startswith("infeasible")


def test_at_the_edge_the_statement_allows_nothing_but_equation_7_does():
    found = bounds.corollary1(**{**COR1, "m": -0.5, "init_dist": COR1["eps"]})
    assert (found.value["eta"], found.value["feasible"]) == (0.0, False)
    assert found.value["eta_exact_infimum"] > 0
    assert found.status.startswith("infeasible by the statement")


# --- Propositions 2 and 3, Theorem 4


def test_the_sharper_form_is_never_worse():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        n = int(rng.integers(2, 9))
        d0, dn = (int(k) for k in rng.integers(1, 7, 2))
        norms = 10 ** rng.uniform(-2, 1, n)
        eps = rng.uniform(0, 1) / (2 * n)
        spec = 10 ** rng.uniform(-2, 1)
        fro = spec * rng.uniform(1, math.sqrt(min(d0, dn)) + 1e-12)
        # on a flow from near zero no layer is larger than this
        end = max(0.0, max(norms) ** 2 - 2 * eps**2) ** (n / 2) * rng.uniform(1, 2)
        found = bounds.proposition2(n, d0, dn, fro, spec, end, list(norms), eps).value
        assert found["rhs_tight"] >= found["rhs_eq14"] * (1 + 1e-12)


def test_a_zero_end_to_end_matrix_of_two_layers_counts_as_one():
    zero = bounds.proposition2(2, 4, 3, 1.5, 1.1, 0.0, [0.0, 0.0], 0.1).value
    assert zero["rhs_tight"] == pytest.approx(-1.1)
    assert bounds.proposition2(**{**PROP2, "end_to_end_spec": 0.0}).value["rhs_tight"] < 0


def test_weight_decay_lifts_both_forms():
    plain = bounds.proposition2(**PROP2).value
    decayed = bounds.proposition2(**PROP2, weight_decay=0.25).value
    assert decayed == pytest.approx({key: value + 0.25 for key, value in plain.items()})


def test_proposition_2_of_200_wide_layers_has_a_logarithm():
    found = bounds.proposition2(200, 9, 9, 1.0, 1.0, 1.0, [1e3] * 200, 1e-3).value
    assert found["rhs_eq14"] == -math.inf
    assert found["log_minus_rhs_eq14"] == pytest.approx(396 * math.log(1e3), rel=0.01)


def test_proposition_3_contains_both_equations():
    found = bounds.proposition3(**PROP3).value
    time = bounds.equation17(3, 0.2, 0.5, 0.05).value["t_bar"]
    assert found["t_bar"] == time
    assert found["rhs"] == pytest.approx(bounds.equation18(3, 0.2, 0.5, time, 0.1).value["rhs"])
    assert (found["beta"], found["gamma"]) == (48.0, 6 * math.sqrt(3))


def test_nothing_overflows_for_200_layers_near_the_worst_alignment():
    deep = dict(n=200, r0=1e-3, nu=-0.999)
    assert math.isfinite(bounds.equation17(**deep, eps_bar=0.1).value["log_t_bar"])
    assert math.isfinite(bounds.equation18(**deep, t=1.0, eps=1e-3).value["log_rhs"])
    found = bounds.theorem4(**deep, eps_tilde=0.1).value
    assert found["eta"] == 0.0
    assert math.isfinite(found["log_eta"])
    log_time = bounds.equation17(**deep, eps_bar=0.05).value["log_t_bar"]
    expected = (log_time - found["log_eta"]) / math.log(10)
    assert len(found["k"]) == math.floor(expected) + 1


def test_theorem_4_is_its_two_equations():
    found = bounds.theorem4(**THM4).value
    assert found["log_eta"] == bounds.equation19(**THM4).value["log_eta"]
    k = bounds.equation20(**THM4, eta=found["eta"]).value["k"]
    assert int(found["k"]) == pytest.approx(int(k), rel=1e-9)


def test_a_step_size_beyond_equation_19_is_said_in_the_status():
    assert "larger than Equation 19" in bounds.equation20(**THM4, eta=1e-4).status
    assert bounds.equation20(**THM4, eta=1e-23).status == "ok"


def test_theorem_4_follows_from_theorem_3_and_proposition_3():
    """The audit: with ε of the proof, Equation 7 allows at least the step size of (19)."""
    for n in (2, 3, 4, 6, 8):
        for r0 in (0.2, 0.05, 1e-3):
            for nu in (1.0, 0.5, 0.0, -0.5, -0.9, -0.99):
                q, p = max(1, (1 - nu) / (1 + nu)), max(1, 1.5 * (1 - nu) / (1 + nu))
                length = math.log(15 * n * q / (r0 * 0.1))
                eps = 0.1 * r0**2 / (30 * n**4 * p ** (2 * n) * length)
                t = bounds.equation17(n, r0, nu, 0.05).value["t_bar"]
                rhs = bounds.equation18(n, r0, nu, t, eps).value["rhs"]
                log_eta = math.log(eps) - math.log(96 * n**1.5) - rhs - math.log(t)
                slack = log_eta - bounds.equation19(n, r0, nu, 0.1).value["log_eta"]
                assert slack > 2.0, (n, r0, nu)


# --- worst case


@pytest.mark.parametrize("seed", range(5))
def test_the_derivatives_of_the_ridge_are_differences_of_its_values(seed):
    a, m, x, y = np.random.default_rng(seed).uniform(0.1, 2.0, 4)
    h = 1e-6

    def difference(f, *, at):
        e = [h, 0.0] if at == "x" else [0.0, h]
        above, below = f(a, m, x + e[0], y + e[1]), f(a, m, x - e[0], y - e[1])
        return (np.array(above) - np.array(below)) / (2 * h)

    g = np.array(gradient(a, m, x, y))
    assert g == pytest.approx([difference(ridge, at=s) for s in "xy"], abs=1e-8)
    f_xx, f_xy, f_yy = hessian(a, m, x, y)
    assert difference(gradient, at="x") == pytest.approx([f_xx, f_xy], abs=1e-8)
    assert difference(gradient, at="y") == pytest.approx([f_xy, f_yy], abs=1e-8)
    smallest = np.linalg.eigvalsh([[f_xx, f_xy], [f_xy, f_yy]])[0]
    assert bounds.worst_case(a, m, x, y).value["lambda_min"] == pytest.approx(smallest, abs=1e-12)


def test_on_the_ridge_the_flow_is_known():
    a, m = 0.7, 1.3
    for x in np.linspace(0, 6, 20):
        g = gradient(a, m, x, a * math.sin(x))
        assert g == pytest.approx((-1.0, -a * math.cos(x)), abs=1e-12)


def test_the_necessary_step_size_shrinks_exponentially_in_the_horizon():
    logs = [necessary_step_size(1.0, 1.0, 1e-3, t).value["log_eta"] for t in (2.0, 4.0)]
    assert logs[1] - logs[0] == pytest.approx(-3.0)


# --- refusals


BAD = [
    (bounds.theorem3, EQ7, {"eps": 0.0}, r"eps must be positive and finite, got 0.0"),
    (bounds.theorem3, EQ7, {"eps": math.nan}, r"eps must be positive and finite, got nan"),
    (bounds.theorem3, EQ7, {"beta": -1.0}, r"beta\[0\] must be positive and finite, got -1.0"),
    (bounds.theorem3, EQ7, {"gamma": 0.0}, r"gamma\[0\] must be positive and finite, got 0.0"),
    (bounds.theorem3, EQ7, {"m": [0.1]}, r"m must be one value per piece \(2 for 3 breaks\)"),
    (bounds.theorem3, EQ7, {"m": [0.1, math.inf]}, r"m\[1\] must be finite, got inf"),
    (bounds.theorem3, EQ7, {"m": [0.1, None]}, r"m\[1\] must be finite, got None"),
    (bounds.theorem3, EQ7, {"m": "ab"}, r"m must be a list of numbers, got 'ab'"),
    (bounds.theorem3, EQ7, {"breaks": [0, 2, 1]}, r"breaks must be increasing, got 2.0 followed"),
    (bounds.theorem3, EQ7, {"breaks": [-1, 0, 1]}, r"breaks\[0\] must be not negative and finite"),
    (bounds.theorem3, EQ7, {"breaks": [0, 0, 0]}, r"breaks must be an interval of positive length"),
    (bounds.theorem3, EQ7, {"init_dist": -0.1}, r"init_dist must be not negative and finite"),
    (bounds.theorem3, EQ7, {"constants_are": "x"}, r"constants_are must be .given. or .sampled."),
    (bounds.theorem3, EQ7, {"beta": [1.0, 2.0], "half_step": True}, r"half_step must be False"),
    (bounds.corollary1, COR1, {"m": 2.5}, r"m must be at most beta = 2.0 in size, got 2.5"),
    (bounds.corollary1, COR1, {"f0": -1.0}, r"f0 must be not negative and finite, got -1.0"),
    (bounds.corollary1, COR1, {"horizon": -5.0}, r"horizon must be positive and finite, got -5.0"),
    (bounds.corollary1, COR1, {"beta": True}, r"beta must be positive and finite, got True"),
    (bounds.corollary1, COR1, {"m": -1.0, "half_step": True}, r"half_step must be False for m < 0"),
    (bounds.proposition2, PROP2, {"n": 1, "W_specs": [1.0]}, r"depth n must be an integer of at"),
    (bounds.proposition2, PROP2, {"n": 2.5}, r"depth n must be an integer of at least 2, got 2.5"),
    (bounds.proposition2, PROP2, {"eps": 0.2}, r"eps must be in \(0, 1/\(2n\)\] = .*, got 0.2"),
    (bounds.proposition2, PROP2, {"eps": 0.0}, r"eps must be in .*, got 0.0"),
    (bounds.proposition2, PROP2, {"W_specs": [1.0]}, r"W_specs must be one norm per layer \(3\)"),
    (bounds.proposition2, PROP2, {"grad_spec": 0.9}, r"grad_spec must be at most grad_fro = 0.8"),
    (bounds.proposition3, PROP3, {"eps": 0.2}, r"eps must be in \(0, 1/\(2n\)\]"),
    (bounds.proposition3, PROP3, {"eps_bar": 0.0}, r"eps_bar must be positive and finite, got 0.0"),
    (bounds.proposition3, PROP3, {"n": 1}, r"depth n must be an integer of at least 2, got 1"),
    (bounds.theorem4, THM4, {"r0": 0.21}, r"at the start must be in \(0, 0.2\], got 0.21"),
    (bounds.theorem4, THM4, {"r0": 0.0}, r"at the start must be in \(0, 0.2\], got 0.0"),
    (bounds.theorem4, THM4, {"nu": -1.0}, r"nu, .* must be in \(−1, 1\], got -1.0"),
    (bounds.theorem4, THM4, {"nu": 1.1}, r"nu, .* must be in \(−1, 1\], got 1.1"),
    (bounds.theorem4, THM4, {"eps_tilde": -1.0}, r"eps_tilde must be positive .*, got -1.0"),
    (bounds.theorem4, THM4, {"n": math.nan}, r"depth n must be an integer of at least 2, got nan"),
    (bounds.equation18, {"n": 3, "r0": 0.1, "nu": 0.0, "t": 1.0, "eps": 0.1}, {"t": -1.0},
     r"t must be not negative and finite, got -1.0"),
    (bounds.worst_case, {"a": 1.0, "m": 1.0, "x": 0.0, "y": 0.0}, {"m": 0.0}, r"m must be posi"),
    (bounds.procedure1, {"A": [[0.1, 0.2]], "dims": [2, 2, 1]}, {"dims": [2, 1]},
     r"depth n must be at least 2, got 1"),
    (bounds.procedure1, {"A": [[0.1, 0.2]], "dims": [2, 2, 1]}, {"dims": [3, 2, 1]},
     r"end-to-end matrix must be of shape \(1, 3\), got shape \(1, 2\)"),
    (bounds.procedure1, {"A": [[0.1, 0.2]], "dims": [2, 2, 1]}, {"A": [[0.1, math.nan]]},
     r"A must be finite, got nan"),
    (bounds.procedure1, {"A": [[1.0, 0.0], [0.0, 1.0]], "dims": [2, 2, 2]}, {"dims": [2, 1, 2]},
     r"rank of the end-to-end matrix must be at most min\(dims\) = 1, got 2"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "inputs", "change", "message"), BAD)
def test_a_hypothesis_that_fails_is_named_with_its_number(function, inputs, change, message):
    assert function(**inputs).status  # the unchanged inputs are fine
    with pytest.raises(AssumptionError, match=message):
        function(**{**inputs, **change})


def test_every_assumption_says_how_it_was_checked():
    for function, inputs in (
        (bounds.theorem3, EQ7), (bounds.corollary1, COR1), (bounds.proposition2, PROP2),
        (bounds.proposition3, PROP3), (bounds.theorem4, THM4),
    ):  # fmt: skip
        assumptions = function(**inputs).assumptions
        assert assumptions
        assert all(item.checked.startswith(("held: ", "not checkable")) for item in assumptions)


def test_the_integral_of_the_paper_is_that_of_the_library():
    """I(t) = ∫_0^t exp(∫_{t'}^t m) dt' by quadrature, for a constant m."""
    integral = quad(lambda s: math.exp(0.7 * (2.0 - s)), 0, 2.0)[0]
    eta = bounds.theorem3([0, 2.0], 0.7, 1.5, 2.5, 0.1).value["eta"]
    assert eta == pytest.approx(0.1 / (1.5 * 2.5 * integral), rel=1e-10)


# --- registration


def test_every_result_is_evaluated_and_what_is_not_live_cannot_be_attached():
    assert "bounds" in KINDS
    registry = Plugins()
    for spec in gfshadow_bounds():
        assert spec.evaluate is not None or spec.live
        if not spec.live:
            message = (
                f"bounds must be limits along a run, got '{spec.name}'.*bound show {spec.name}"
            )
            with pytest.raises(ValueError, match=message):
                registry.build("bounds", spec.name)
