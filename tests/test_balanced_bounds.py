"""From balanced weights: the exact flow, what Proposition 3 and Theorem 4 say of it, and GD."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from torch_gfshadow import bounds
from torch_gfshadow.balance import (
    balanced_factors,
    differences,
    nearest_balanced,
    slack,
    unbalancedness,
    uniform_radius,
)
from torch_gfshadow.bounds._balanced import Setting, setting_of
from torch_gfshadow.bounds._exact_flow import follow, time_of
from torch_gfshadow.bounds.tight_step import ball_constants
from torch_gfshadow.errors import AssumptionError
from torch_gfshadow.whitening import whiten

F64 = torch.float64
GRID = [(2, 0.2, 0.5), (3, 0.2, 0.5), (3, 0.1, -0.7), (5, 0.15, 0.1), (3, 0.2, 1.0), (2, 0.05, 1.0)]


def start(n, r0, nu, d0=4, width=3, gauge=None):
    """Balanced weights with this size and alignment; Λ_yx = e_1."""
    row = torch.zeros(1, d0, dtype=F64)
    row[0, 0], row[0, 1] = r0 * nu, r0 * math.sqrt(max(0.0, 1 - nu * nu))
    return balanced_factors(
        row, [d0, *[width] * (n - 1), 1], turn=gauge is not None, generator=gauge
    )


class Network:
    """½‖W_n ⋯ W_1 − e_1‖² as a function of flat weights."""

    def __init__(self, layers):
        self.shapes = [w.shape for w in layers]
        self.target = torch.zeros(1, layers[0].shape[1], dtype=F64)
        self.target[0, 0] = 1.0

    def flat(self, layers):
        return torch.cat([w.reshape(-1) for w in layers])

    def layers(self, theta):
        sizes = [s[0] * s[1] for s in self.shapes]
        return [p.reshape(s) for p, s in zip(torch.split(theta, sizes), self.shapes, strict=True)]

    def __call__(self, theta):
        product = None
        for w in self.layers(theta):
            product = w if product is None else w @ product
        return 0.5 * (product - self.target).square().sum()

    def gradient(self, theta):
        x = theta.detach().requires_grad_()
        return torch.autograd.grad(self(x), x)[0]

    def hessian(self, theta):
        return torch.autograd.functional.hessian(self, theta)


def flow(network, theta, times):
    out = solve_ivp(
        lambda _, y: -network.gradient(torch.from_numpy(y)).numpy(),
        (0.0, times[-1]), theta.numpy(), "DOP853", t_eval=times, rtol=1e-12, atol=1e-14,
    )  # fmt: skip
    return torch.from_numpy(out.y.T.copy())


# --- the exact flow


@pytest.mark.parametrize(("n", "r0", "nu"), GRID)
def test_it_is_the_flow_of_a_network_and_its_curvature_that_of_the_hessian(n, r0, nu):
    layers = start(n, r0, nu, gauge=torch.Generator().manual_seed(0))
    network = Network(layers)
    times = [0.0, 0.5, 2.0, 6.0]
    found = bounds.exact_dynamics(n, r0, nu, times).value
    for i, theta in enumerate(flow(network, network.flat(layers), times)):
        assert found["gap"][i] == pytest.approx(float(network(theta)), abs=1e-9, rel=1e-8)
        smallest = float(torch.linalg.eigvalsh(network.hessian(theta))[0])
        assert found["lambda_min"][i] == pytest.approx(smallest, abs=1e-8)


def test_a_network_of_width_one_has_fewer_directions_to_escape():
    layers = start(3, 0.2, 0.3, width=1)
    network = Network(layers)
    narrow = bounds.exact_dynamics(3, 0.2, 0.3, 1.0, width=1).value["lambda_min"][0]
    theta = flow(network, network.flat(layers), [0.0, 1.0])[-1]
    assert narrow == pytest.approx(float(torch.linalg.eigvalsh(network.hessian(theta))[0]))
    assert bounds.exact_dynamics(3, 0.2, 0.3, 1.0).value["lambda_min"][0] <= narrow


def test_a_loss_is_reached_when_the_flow_has_it():
    found = bounds.exact_dynamics(3, 0.2, 0.5, eps_bar=1e-3).value
    assert found["gap"][0] == pytest.approx(1e-3, rel=1e-6)
    assert bounds.exact_dynamics(3, 0.2, 0.5, found["t"]).value["gap"] == pytest.approx([1e-3])


def test_long_after_the_end_the_loss_is_the_minimum():
    assert bounds.exact_dynamics(2, 0.2, 0.5, 1e6).value["gap"][0] < 1e-25


def test_depth_and_extreme_alignment_do_not_overflow():
    found = bounds.exact_dynamics(200, 0.2, -0.9, 1.0).value
    assert 0 < found["r"][0] < 0.2
    assert math.isfinite(found["lambda_min"][0])


@pytest.mark.parametrize(
    ("n", "r0", "nu"),
    [(2, 1e-3, 0.3), (3, 1e-4, -0.9), (6, 0.02, 0.5), (8, 0.1, -0.5), (8, 0.05, 1.0)],
)
def test_between_its_nodes_the_flow_has_eleven_digits(n, r0, nu):
    """Against SciPy in log r and artanh ν, at times that are no nodes."""

    def field(_, y):
        pace = math.exp((1 - 2 / n) * y[0])
        cosine = math.tanh(y[1]) if nu < 1 else 1.0
        return [n * pace * (cosine - math.exp(y[0])), pace if nu < 1 else 0.0]

    end = bounds.exact_dynamics(n, r0, nu, eps_bar=0.2).value["t"][0]
    times = (end * np.linspace(0.0, 1.0, 23)).tolist()
    found = bounds.exact_dynamics(n, r0, nu, times=times).value
    begin = [math.log(r0), math.atanh(nu) if nu < 1 else 0.0]
    options = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-14, "t_eval": times}
    r = np.exp(solve_ivp(field, (0.0, times[-1]), begin, **options).y[0])
    assert found["r"] == pytest.approx(r, rel=3e-11)


def test_the_tight_step_of_extreme_settings_is_a_number_or_a_refusal():
    huge = bounds.tight_step(3, 0.2, -1 + 1e-9, 0.1).value
    assert huge["eta"] == 0.0
    assert huge["log_eta"] < -1e4
    assert len(huge["k"]) > 4000
    many = bounds.tight_step(50, 1e-8, 0.0, 0.1).value
    assert many["k"] >= many["horizon"] / many["eta"] * (1 - 1e-12)
    # the start is as good as asked for: as if less had been asked
    easy, double = (bounds.tight_step(3, 0.2, 0.5, eps).value for eps in (1e300, 0.84))
    assert easy == double
    with pytest.raises(AssumptionError, match=r"must be larger, got 1e-300 with ν = 0\.5"):
        bounds.tight_step(3, 1e-300, 0.5, 0.1)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("r0", [0.2, 0.05, 1e-3])
def test_proposition_3_holds_and_is_far_above_the_truth(n, r0):
    for nu in (1.0, 0.9, 0.3, 0.0, -0.5, -0.9):
        setting = Setting.of(n, r0, nu)
        path = follow(setting, gap=0.05)
        true_time = time_of(path, 0.05)
        assert bounds.equation17(n, r0, nu, 0.05).value["t_bar"] >= 10 * true_time
        curvature = -bounds.exact_dynamics(n, r0, nu, path.times.tolist()).value["lambda_min"][0]
        m = -np.array(bounds.exact_dynamics(n, r0, nu, path.times.tolist()).value["lambda_min"])
        integral = float(np.trapezoid(m, path.times))
        assert bounds.equation18(n, r0, nu, true_time, 1e-6).value["rhs"] > integral
        assert curvature <= 1.5 * (n - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(times=None), "times, eps_bar must be one of the two, got both or neither"),
        (dict(eps_bar=0.1), "times, eps_bar must be one of the two"),
        (dict(times=-1.0), "times must be not negative and finite, got -1.0"),
        (dict(times=None, eps_bar=0.0), "eps_bar must be above 1e-28 and finite, got 0.0"),
        (dict(n=400, nu=-0.999, r0=1e-3, times=1e9), "time to follow must be shorter"),
    ],
)
def test_what_cannot_be_followed_is_refused(change, message):
    with pytest.raises(AssumptionError, match=message):
        bounds.exact_dynamics(**{**dict(n=3, r0=0.2, nu=0.5, times=1.0), **change})


# --- the tight step


@pytest.mark.parametrize(("n", "r0", "nu"), [*GRID, (4, 0.2, -0.3)])
def test_gradient_descent_at_the_tight_step_reaches_the_loss_in_time(n, r0, nu):
    accuracy = 0.1
    found = bounds.tight_step(n, r0, nu, accuracy)
    assert found.certified
    value = found.value
    if value["k"] > 20_000:
        pytest.skip("too many steps for a quick test")
    layers = start(n, r0, nu, gauge=torch.Generator().manual_seed(1))
    network = Network(layers)
    theta = network.flat(layers)
    for _ in range(value["k"]):
        theta = theta - value["eta"] * network.gradient(theta)
    assert float(network(theta)) <= accuracy
    known = bounds.equation19(n, r0, nu, accuracy).value["log_eta"]
    assert value["log_eta"] > known + math.log(1e13)


def test_gradient_descent_stays_within_the_distance_it_is_promised():
    value = bounds.tight_step(3, 0.2, 0.2, 0.05).value
    layers = start(3, 0.2, 0.2)
    network = Network(layers)
    theta, path = network.flat(layers), []
    stops = np.unique(np.linspace(0, value["k"], 12).astype(int))
    exact = flow(network, theta, [0.0, *(value["eta"] * stops[1:])])
    for k in range(value["k"] + 1):
        if k in stops:
            path.append(theta)
        theta = theta - value["eta"] * network.gradient(theta)
    for here, there in zip(path, exact, strict=True):
        assert float((here - there).norm()) <= value["eps"]


def test_a_start_off_balance_costs_step_size_until_there_is_none():
    steps = [bounds.tight_step(3, 0.2, 0.5, 0.1, rho).value for rho in (0.0, 1e-3, 3e-3, 1e-2)]
    etas = [step["eta"] for step in steps]
    assert etas == sorted(etas, reverse=True)
    assert [step["feasible"] for step in steps] == [True, True, True, False]
    assert steps[3]["k"] is None


def test_its_constants_hold_on_the_balls():
    """m, β and γ against dense Hessians at random points of balls around the flow."""
    rng = np.random.default_rng(0)
    for n, r0, nu in GRID:
        path = follow(Setting.of(n, r0, nu), gap=0.05)
        layers = start(n, r0, nu)
        network = Network(layers)
        chosen = rng.choice(len(path.times) - 1, 4, replace=False)
        chosen.sort()
        theta = flow(network, network.flat(layers), [0.0, *path.times[chosen + 1]])[1:]
        for eps in (1e-3, 0.05, 0.2):
            m, beta, gamma = ball_constants(path, eps)
            for i, here in zip(chosen, theta, strict=True):
                for _ in range(4):
                    move = torch.from_numpy(rng.normal(size=len(here)))
                    near = here + eps * move / move.norm()
                    ends = torch.linalg.eigvalsh(network.hessian(near))
                    assert -float(ends[0]) <= m[i] + 1e-12
                    assert float(ends.abs().max()) <= beta
                    assert float(network.gradient(near).norm()) <= gamma


# --- from matrices


def problem(d0=5, samples=60, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, d0, generator=g, dtype=F64)
    y = x @ torch.randn(d0, generator=g, dtype=F64) + 0.1 * torch.randn(
        samples, generator=g, dtype=F64
    )
    white = whiten(x, y)
    return white.inputs, white.targets[:, 0]


def balanced(d0=5, n=3, norm=0.1, seed=3):
    g = torch.Generator().manual_seed(seed)
    row = torch.randn(1, d0, generator=g, dtype=F64)
    return balanced_factors(
        norm * row / row.norm(), [d0, *[4] * (n - 1), 1], turn=True, generator=g
    )


def test_theorem_4_reads_its_numbers_off_weights_and_data():
    x, y = problem()
    layers = balanced()
    found = bounds.theorem4(eps_tilde=0.1, Ws=layers, X=x, Y=y)
    target = y @ x / len(x)
    row = layers[2] @ layers[1] @ layers[0]
    nu = float(row[0] @ target / row.norm())
    assert found.value["log_eta"] == pytest.approx(
        bounds.theorem4(3, 0.1, nu, 0.1).value["log_eta"], rel=1e-9
    )
    assert all(item.checked.startswith("held: ") for item in found.assumptions)
    tight = bounds.tight_step(eps_tilde=0.1, Ws=[w.tolist() for w in layers], X=x, Y=y)
    assert tight.value["eta"] == pytest.approx(bounds.tight_step(3, 0.1, nu, 0.1).value["eta"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(X=lambda x: 1.1 * x), r"‖Λ_xx − I‖ of X must be at most 1e-08, got 0.21"),
        (dict(Y=lambda y: 2 * y), r"‖Λ_yx‖_F of X, Y must be 1, got 2"),
        (dict(Y=lambda y: y[:-1]), r"Y must be of shape 60 × 1, got 59 × 1"),
        (dict(X=lambda x: x[:, :-1]), r"X must be of shape any × 5, got 60 × 4"),
        (dict(X=lambda x: x * math.nan), r"X must be finite, got nan"),
        (dict(Ws=lambda w: w[:1]), r"depth of Ws must be at least 2, got 1"),
        (dict(Ws=lambda w: [w[0], w[1]]), r"d_n must be 1, got 4"),
        (dict(Ws=lambda w: [w[0], w[2], w[1]]), r"Ws\[2\] must be of shape"),
        (dict(Ws=lambda w: [2 * w[0], w[1], w[2]]), r"unbalancedness of the weights must be at"),
        (dict(Ws=lambda w: [3 * m for m in w]), r"at the start must be in \(0, 0.2\], got 2.7"),
        (dict(Ws=lambda w: [0 * m for m in w]), r"at the start must be in \(0, 0.2\], got 0.0"),
        (dict(loss=lambda _: "absolute"), r"loss must be the square loss, got 'absolute'"),
        (dict(loss=lambda _: "cross_entropy"), r"loss must be the square loss"),
    ],
)
def test_weights_and_data_outside_the_setting_are_refused_with_the_number(change, message):
    x, y = problem()
    inputs = dict(Ws=balanced(), X=x, Y=y, loss="square")
    setting_of(inputs["Ws"], x, y, "square: ½ mean (Wx − y)²")
    for name, edit in change.items():
        inputs[name] = edit(inputs[name])
    with pytest.raises(AssumptionError, match=message):
        bounds.theorem4(eps_tilde=0.1, **inputs)


def test_a_start_opposite_to_the_target_is_refused():
    x, y = problem()
    target = y @ x / len(x)
    layers = balanced_factors(-0.1 * target[None], [5, 4, 4, 1])
    with pytest.raises(AssumptionError, match=r"nu, .* must be in \(−1, 1\], got -1.0"):
        bounds.theorem4(eps_tilde=0.1, Ws=layers, X=x, Y=y)


# --- nearly balanced


def test_a_start_within_rounding_of_balance_has_theorem_4_unchanged():
    """n = 2, aligned: the widest ρ_max there is; balanced weights are off by rounding only."""
    assert bounds.approximate_balance(3, 0.2, 0.5, 0.1, 0.0).value["rho_max"] == pytest.approx(
        7.9e-15, rel=0.01
    )
    x, y = problem()
    target = y @ x / len(x)
    layers = balanced_factors(0.2 * target[None], [5, 3, 1])
    found = bounds.approximate_balance(Ws=layers, X=x, Y=y, eps_tilde=0.1)
    assert 0.0 <= found.value["rho"] <= found.value["rho_max"]
    assert found.value["log_eta"] == pytest.approx(
        bounds.equation19(2, 0.2, 1.0, 0.1).value["log_eta"], rel=1e-6
    )
    assert any("ρ ≤ ρ_max" in item.statement for item in found.assumptions)


def test_a_start_too_far_from_balance_is_refused_with_both_numbers():
    message = r"rho = .* must be at most rho_max = exp\(-32.47\) = 7.92e-15, got 1e-10"
    with pytest.raises(AssumptionError, match=message):
        bounds.approximate_balance(3, 0.2, 0.5, 0.1, 1e-10)
    x, y = problem()
    layers = balanced()
    layers[0] = layers[0] + 1e-4
    with pytest.raises(AssumptionError, match="rho = "):
        bounds.approximate_balance(Ws=layers, X=x, Y=y, eps_tilde=0.1)
    assert bounds.tight_step(Ws=layers, X=x, Y=y, eps_tilde=0.1).value["feasible"]


@pytest.mark.parametrize("noise", [1e-8, 1e-3, 0.1])
def test_the_nearest_balanced_weights_are_balanced_and_near(noise):
    g = torch.Generator().manual_seed(0)
    layers = balanced()
    moved = [w + noise * torch.randn(w.shape, generator=g, dtype=F64) for w in layers]
    found, gap = nearest_balanced(moved)
    off = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(moved, layers, strict=True)))
    assert unbalancedness(found) < 1e-14
    assert gap <= off
    distance = sum(float((a - b).square().sum()) for a, b in zip(moved, found, strict=True))
    assert gap == pytest.approx(math.sqrt(distance), rel=1e-9)


def test_two_outputs_have_no_nearest_balanced_weights_here():
    with pytest.raises(AssumptionError, match="d_n must be 1, got 2"):
        nearest_balanced([torch.ones(2, 2), torch.ones(2, 2)])


def test_zero_weights_are_their_own_nearest():
    found, gap = nearest_balanced([torch.zeros(3, 2, dtype=F64), torch.zeros(1, 3, dtype=F64)])
    assert gap == 0.0
    assert all(float(w.abs().max()) == 0.0 for w in found)


# --- Corollary 2


def test_a_random_start_is_small_balanced_and_has_theorem_4():
    x, y = problem()
    found = bounds.corollary2([5, 4, 4, 1], x, y, 0.1, seed=4).value
    layers = [torch.tensor(w, dtype=F64) for w in found["Ws"]]
    assert unbalancedness(layers) < 1e-15
    assert 0 < found["r0"] <= 0.2
    direct = bounds.theorem4(3, found["r0"], found["nu"], 0.1).value
    assert found["log_eta"] == pytest.approx(direct["log_eta"], rel=1e-6)
    assert found["A"] != bounds.corollary2([5, 4, 4, 1], x, y, 0.1, seed=5).value["A"]
    again = bounds.corollary2([5, 4, 4, 1], x, y, 0.1, A=found["A"]).value
    assert again["log_eta"] == found["log_eta"]


def test_the_draw_is_uniform_in_direction_and_radius():
    g = torch.Generator().manual_seed(0)
    rows = torch.cat([uniform_radius((1, 3), 0.2, generator=g) for _ in range(4000)])
    norms = rows.norm(dim=1)
    assert float(norms.max()) <= 0.2
    assert float(norms.min()) > 0
    quantiles = torch.quantile(norms, torch.tensor([0.25, 0.5, 0.75], dtype=F64))
    assert quantiles.tolist() == pytest.approx([0.05, 0.1, 0.15], abs=0.006)
    assert float((rows / norms[:, None]).mean(0).abs().max()) < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dims=[1, 2, 1]), "d_0 must be at least 2, got 1"),
        (dict(dims=[5, 2, 2]), "d_n must be 1, got 2"),
        (dict(A=[[0.3, 0, 0, 0, 0]]), "‖A‖_F must be at most 0.2, got 0.3"),
        (dict(A=[[0.0] * 5]), r"at the start must be in \(0, 0.2\], got 0.0"),
    ],
)
def test_corollary_2_names_what_it_needs(change, message):
    x, y = problem()
    with pytest.raises(AssumptionError, match=message):
        bounds.corollary2(**{**dict(dims=[5, 4, 1], X=x, Y=y, eps_tilde=0.1), **change})


# --- balanced factors


@pytest.mark.parametrize(
    "dims", [(3, 2, 1), (1, 3, 2), (4, 4, 4), (2, 7, 3, 5), (6, 2, 2, 2, 4), (1, 1, 1, 1)]
)
@pytest.mark.parametrize("gauge", [None, 0])
def test_factors_are_balanced_and_multiply_to_the_matrix(dims, gauge):
    g = torch.Generator().manual_seed(1)
    rank = min(dims)
    left = torch.randn(dims[-1], rank, generator=g, dtype=F64)
    matrix = left @ torch.randn(rank, dims[0], generator=g, dtype=F64)
    layers = balanced_factors(matrix, dims, turn=gauge is not None, generator=g)
    assert [tuple(w.shape) for w in layers] == [(b, a) for a, b in pairwise(dims)]
    product = layers[0]
    for w in layers[1:]:
        product = w @ product
    torch.testing.assert_close(product, matrix, rtol=1e-12, atol=1e-13)
    assert unbalancedness(layers) < 1e-13 * max(1.0, float(matrix.norm()))


def test_no_layer_is_larger_than_the_product_and_the_slack_allow():
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        n = int(torch.randint(2, 6, (), generator=g))
        dims = torch.randint(1, 5, (n + 1,), generator=g).tolist()
        layers = [torch.randn(b, a, generator=g, dtype=F64) for a, b in pairwise(dims)]
        product = layers[0]
        for w in layers[1:]:
            product = w @ product
        norm = float(torch.linalg.matrix_norm(product, 2))
        widest = max(float(torch.linalg.matrix_norm(w, 2)) for w in layers)
        assert widest**2 <= norm ** (2 / n) + slack(layers) + 1e-9
        assert len(differences(layers)) == n - 1


# --- weight decay


def test_decay_shifts_all_three_constants():
    plain = dict(breaks=[0, 1, 2], m=[0.5, -0.3], eps=0.1)
    shifted = bounds.theorem3(
        m=[0.3, -0.5], beta=2.2, gamma=3.0 + 0.2 * 1.5, breaks=[0, 1, 2], eps=0.1
    )
    found = bounds.weight_decay(**plain, beta=2.0, gamma=3.0, weight_decay=0.2, theta_norm=1.5)
    assert found.value == shifted.value
    assert found.certified
    other = bounds.weight_decay(
        **plain, beta=2.0, gamma=3.0, weight_decay=0.2, theta_norm=1.5, along="plain"
    )
    assert not other.certified


def test_decay_beyond_the_curvature_makes_the_limit_independent_of_the_horizon():
    def eta(decay, horizon):
        return bounds.weight_decay(
            [0, horizon], 0.5, 1.0, 1.0, 0.1, weight_decay=decay, theta_norm=1.0
        ).value["eta"]

    assert eta(0.8, 80.0) == pytest.approx(eta(0.8, 8000.0), rel=1e-9)
    assert eta(0.0, 80.0) < 1e-18


def test_decay_needs_to_know_its_flow():
    with pytest.raises(AssumptionError, match="along must be 'decayed' or 'plain', got 'x'"):
        bounds.weight_decay([0, 1], 0.5, 1.0, 1.0, 0.1, weight_decay=0.1, theta_norm=1.0, along="x")
