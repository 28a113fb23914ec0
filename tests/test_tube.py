"""The tubes against dense Hessians on their balls and against flows by SciPy at rtol 1e-12."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from torch_gfshadow.bounds import ReferenceTube, Square, Tube, gfshadow_bounds, loss_of, tube_step
from torch_gfshadow.bounds._ball import Ball, Node
from torch_gfshadow.bounds._chain import Chain, flat, unflat
from torch_gfshadow.bounds._deep_linear import Point
from torch_gfshadow.errors import AssumptionError

SHAPES = [(3, 2, 1), (2, 3, 3), (5, 4, 4, 1), (3, 2, 3, 2), (3, 3, 2, 2, 1), (2, 2, 2, 2, 2, 2)]
CASES = [(dims, "square") for dims in SHAPES]
CASES += [((3, 3, 2), "cross_entropy"), ((2, 3, 2, 3), "cross_entropy"), ((3, 2, 2, 1), "logistic")]


def networks(dims, loss, rng, count, scale):
    """Return a stack of networks and one loss."""
    weights = [scale * rng.normal(size=(count, b, a)) / math.sqrt(a) for a, b in pairwise(dims)]
    x = rng.normal(size=(8, dims[0]))
    if loss == "square":
        y = rng.normal(size=(8, dims[-1]))
    else:
        y = rng.integers(0, dims[-1], 8) if dims[-1] > 1 else rng.choice([-1.0, 1.0], 8)
    return weights, loss_of(x, y, loss, n_outputs=dims[-1])


def single(weights, i):
    return [w[i] for w in weights]


def gradient(theta, like, loss, decay=0.0):
    return flat(Point(Chain(unflat(theta, like)), loss).gradient()) + decay * theta


def flow(start, like, loss, times, decay=0.0):
    """Integrate the flows of a stack together; return their states at ``times``."""

    def field(_, y):
        return -gradient(y.reshape(start.shape), like, loss, decay).reshape(-1)

    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-13, "t_eval": times}
    found = solve_ivp(field, (0.0, times[-1]), start.reshape(-1), **options)
    assert found.success
    return np.moveaxis(found.y.reshape(*start.shape, -1), -1, 0)


def check_balls(balls, points, seed):
    """Sample ``points`` pairs in each of ``balls`` balls per case; return (samples, ratios)."""
    rng = np.random.default_rng(seed)
    total, ratios = 0, {k: [] for k in ("A", "B", "beta", "gamma", "slope")}
    for dims, name in CASES:
        weights, loss = networks(dims, name, rng, balls, rng.choice([0.3, 1.0]))
        for i in range(balls):
            node = Node(Point(Chain(single(weights, i)), loss))
            radius = 10 ** rng.uniform(-2, -0.3)
            ball = Ball(node, radius)
            steps = rng.normal(size=(2, points, node.size))
            # on the sphere half the time: there the constants are tightest
            lengths = radius * rng.uniform(0, 2, (2, points, 1)).clip(max=1.0)
            steps *= lengths / np.linalg.norm(steps, axis=-1, keepdims=True)
            first, second = (
                Point(Chain(unflat(node.theta + s, node.point.chain.weights)), loss) for s in steps
            )
            dense = first.hessian()
            spectrum = np.linalg.eigvalsh(dense)
            apart = np.linalg.norm(steps[0] - steps[1], axis=-1)
            turned = np.linalg.norm(dense - second.hessian(), 2, axis=(-2, -1)) / apart
            seen = {
                "A": -spectrum[:, 0].min(),
                "B": -spectrum[:, 0].min(),
                "beta": np.abs(spectrum).max(),
                "gamma": np.linalg.norm(flat(first.gradient()), axis=-1).max(),
                "slope": turned.max(),
            }
            said = {
                "A": ball.curvature_by_norms,
                "B": ball.curvature_by_blocks,
                "beta": ball.smoothness,
                "gamma": ball.steepest,
                "slope": ball.hessian_slope,
            }
            for key, value in said.items():
                assert seen[key] <= value * (1 + 1e-9), (dims, name, key)
                if seen[key] > 0:
                    ratios[key].append(value / seen[key])
            total += points
    return total, {k: float(np.median(v)) for k, v in ratios.items()}


def test_constants_hold_at_2000_pairs_of_points_of_their_balls():
    total, ratios = check_balls(balls=12, points=20, seed=0)
    assert total >= 2000
    assert ratios["B"] < ratios["A"]
    assert 1.0 <= ratios["beta"] < 10.0


def check_tubes(count, n_steps, seed):
    """Run tubes over random polygons; return (tubes, violations, R/actual of each mode)."""
    rng = np.random.default_rng(seed)
    total, ratios = 0, {mode: [] for mode in "ABC"}
    for dims, name in CASES:
        weights, loss = networks(dims, name, rng, count, rng.choice([0.3, 0.8]))
        decay = rng.choice([0.0, 0.2])
        steps = 10 ** rng.uniform(-3, -1.3) * rng.uniform(0.5, 1.5, n_steps)  # a schedule
        noise = rng.choice([0.0, 1e-3])
        apart = rng.choice([0.0, 1e-3], (count, 1))
        theta = flat(weights)
        off = rng.normal(size=theta.shape)
        off *= apart / np.linalg.norm(off, axis=-1, keepdims=True)
        path = [theta]
        for h in steps:
            g = gradient(path[-1], weights, loss, decay)
            path.append(path[-1] - h * (g + noise * rng.normal(size=g.shape)))
        states = flow(theta + off, weights, loss, np.cumsum(steps), decay)
        distance = np.linalg.norm(states - np.array(path[1:]), axis=-1)
        for i in range(count):
            for mode in "ABC":
                tube = Tube(
                    single(weights, i),
                    loss,
                    mode=mode,
                    start=float(apart[i, 0]) * (1 + 1e-9),
                    weight_decay=decay,
                )
                shape = single(weights, i)
                radii = [tube.step(unflat(path[k + 1][i], shape), h) for k, h in enumerate(steps)]
                referee = 1e-11 * (1 + np.linalg.norm(states[:, i], axis=-1))
                assert (distance[:, i] <= np.array(radii) + referee).all(), (dims, name, mode, i)
                total += 1
                if math.isfinite(radii[-1]) and distance[-1, i] > 1e-8:
                    ratios[mode].append(radii[-1] / distance[-1, i])
    return total, {k: float(np.median(v)) for k, v in ratios.items()}


def test_2000_tubes_contain_their_flows():
    total, ratios = check_tubes(count=75, n_steps=6, seed=0)
    assert total >= 2000
    assert 1.0 <= ratios["C"] < 3.0
    assert ratios["C"] <= ratios["B"] <= ratios["A"]


@pytest.mark.slow
def test_100000_tubes_contain_their_flows():
    total, ratios = 0, []
    for seed in range(1, 8):
        tubes, ratio = check_tubes(count=540, n_steps=6, seed=seed)
        total += tubes
        ratios.append(ratio)
    assert total >= 100_000
    print(total, ratios)


def check_reference(count, seed):
    """Certify fourth-order Runge–Kutta; return (nodes, median radius over true error)."""
    rng = np.random.default_rng(seed)
    total, ratios = 0, []
    for dims in SHAPES:
        weights, loss = networks(dims, "square", rng, count, 0.7)
        decay = rng.choice([0.0, 0.1])
        h, n_nodes = 10 ** rng.uniform(-2, -1.2), 8

        def field(y, like=weights, loss=loss, decay=decay):
            return -gradient(y, like, loss, decay)

        nodes = [flat(weights)]
        for _ in range(n_nodes):
            y = nodes[-1]
            k1 = field(y)
            k2 = field(y + h / 2 * k1)
            k3 = field(y + h / 2 * k2)
            nodes.append(y + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(y + h * k3)))
        times = np.cumsum(np.full(n_nodes, h))
        states = flow(nodes[0], weights, loss, times, decay)
        for i in range(count):
            shape = single(weights, i)
            reference = ReferenceTube(shape, loss, weight_decay=decay)
            for k in range(n_nodes):
                radius = reference.step(unflat(nodes[k + 1][i], shape), h)
                error = np.linalg.norm(nodes[k + 1][i] - states[k, i])
                referee = 1e-11 * (1 + np.linalg.norm(states[k, i]))
                assert error <= radius + referee, (dims, i, k)
                iterate = states[k, i] + 1e-3 * rng.normal(size=states[k, i].shape)
                low, high = reference.discrepancy(unflat(iterate, shape))
                true = np.linalg.norm(iterate - states[k, i])
                assert low - referee <= true <= high + referee
                total += 1
            if error > 1e-10:
                ratios.append(radius / error)
    return total, float(np.median(ratios))


def test_the_reference_tube_contains_the_flow_at_2000_nodes():
    total, ratio = check_reference(count=44, seed=0)
    assert total >= 2000
    assert ratio > 1.0


@pytest.mark.slow
def test_the_reference_tube_contains_the_flow_at_100000_nodes():
    totals = [check_reference(count=350, seed=seed) for seed in range(1, 7)]
    assert sum(total for total, _ in totals) >= 100_000
    print(totals)


def balanced(dims, row, r0):
    """Return balanced weights of depth n with the product r0·row (one output)."""
    a = r0 ** (1 / (len(dims) - 1))
    weights = [np.zeros((rows, columns)) for columns, rows in pairwise(dims)]
    weights[0][0] = a * row
    for w in weights[1:]:
        w[0, 0] = a
    return weights


@pytest.mark.parametrize(("nu", "longest"), [(-0.43, {"A": 4.5, "B": 5.1}), (0.5, {"A": 5.6})])
def test_the_example_of_three_layers_is_certified_to_its_end_in_mode_c(nu, longest):
    target = np.eye(5)[:1]
    row = nu * target + math.sqrt(1 - nu**2) * np.eye(5)[1:2]
    weights, loss = balanced((5, 4, 4, 1), row, 0.2), Square(np.eye(5), target)
    h, n_steps = 1e-2, 600
    states = flow(flat(weights)[None], weights, loss, h * np.arange(1, n_steps + 1))[:, 0]
    ratios = {}
    for mode in "ABC":
        tube, theta, found = Tube(weights, loss, mode=mode), flat(weights), []
        for k in range(n_steps):
            theta = theta - h * gradient(theta, weights, loss)
            radius = tube.step(unflat(theta, weights), h)
            distance = np.linalg.norm(theta - states[k])
            assert distance <= radius
            found.append(radius / distance)
        ratios[mode] = np.median(found)
        if mode in longest:
            assert 3.0 < tube.certified_until < longest[mode]
            assert tube.status == f"certified until t = {tube.certified_until:.6g}"
            assert tube.radius == math.inf
    assert tube.status == "ok"
    assert ratios["C"] < 8.0
    cell = tube.value().to_cell()
    assert cell["certified"]
    assert cell["value"] == pytest.approx(tube.radius)


def test_float32_iterates_are_certified_with_their_own_rounding():
    rng = np.random.default_rng(0)
    weights, loss = networks((5, 4, 4, 1), "square", rng, 1, 0.7)
    weights = [w.astype(np.float32) for w in single(weights, 0)]
    start = [w.astype(np.float64) for w in weights]
    h = 2.0**-7
    tube, states = Tube(weights, loss), flow(flat(start)[None], start, loss, h * np.arange(1, 101))
    for k in range(100):
        g = Point(Chain(weights), loss).gradient()
        weights = [
            (w - np.float32(h) * s).astype(np.float32) for w, s in zip(weights, g, strict=True)
        ]
        radius = tube.step(weights, h)
        assert np.linalg.norm(flat(weights) - states[k, 0]) <= radius
    assert 0 < tube.steps[0].defect[0] < 1e-4
    assert radius < 0.1


@pytest.mark.parametrize("m", [-3.0, -1e-9, 0.0, 1e-9, 0.5, 40.0])
def test_a_step_solves_its_differential_equation(m):
    r, h, c = 0.3, 0.7, (0.1, 0.4, 0.9)
    exact = solve_ivp(
        lambda s, y: m * y + c[0] + c[1] * s + c[2] * s * s, (0, h), [r], rtol=1e-12, atol=1e-14
    )
    assert tube_step(r, h, m, *c) == pytest.approx(exact.y[0, -1], rel=1e-9)


def test_a_step_does_not_overflow_before_its_value_does():
    assert tube_step(1e-300, 1.0, 1000.0, 0.0) == pytest.approx(
        math.exp(1000 - 300 * math.log(10)), rel=1e-9
    )
    assert tube_step(0.0, 1.0, 1200.0, 1e-300, 1e-300, 1e-300) < math.inf
    assert tube_step(1.0, 1.0, 1e4, 0.0) == math.inf
    assert tube_step(0.0, 1.0, 1e4, 0.0) == 0.0
    assert tube_step(0.5, 0.0, 1e4, 1.0) == 0.5


def test_at_rest_nothing_grows_and_a_run_that_leaves_is_let_go():
    loss = Square(np.eye(1), np.eye(1))
    rest = [np.eye(1), np.eye(1)]
    tube = Tube(rest, loss)
    assert tube.step(rest, 0.5) < 1e-12
    for k in range(1, 20):
        radius = tube.step([np.eye(1) * 3.0**k, np.eye(1)], 0.5)
    assert radius == math.inf
    assert tube.status.startswith("certified until t = 0.5")
    assert tube.value().status != "ok"


LOSS = Square(np.eye(2), np.ones((1, 2)))
W = [np.eye(2), np.ones((1, 2))]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Tube(W[:1], LOSS), "depth of Ws must be at least 2, got 1"),
        (lambda: Tube(W, LOSS, mode="D"), "mode must be 'A' or 'B' or 'C', got 'D'"),
        (lambda: Tube(W, LOSS, start=-1.0), "start must be not negative and finite, got -1.0"),
        (lambda: Tube(W, LOSS, weight_decay=math.nan), "weight_decay must be not negative"),
        (lambda: Tube(W, Square(np.eye(3), np.ones((1, 3)))), r"must be of shape 1 × 3, got 1 × 2"),
        (lambda: Tube(W, LOSS).step(W, 0.0), "step_size must be positive and finite, got 0.0"),
        (lambda: Tube(W, LOSS).step(W[:1], 0.1), "Ws must be a list of 2 matrices"),
        (lambda: Tube(W, LOSS).step([W[0], [[math.nan, 1]]], 0.1), r"Ws\[1\] must be finite"),
        (
            lambda: ReferenceTube(W, loss_of([[1.0, 2.0]], [1.0], "logistic")),
            "loss must be the square loss, got Logistic",
        ),
    ],
)
def test_bad_input_is_named_with_its_number(build, message):
    with pytest.raises(AssumptionError, match=message):
        build()


@pytest.mark.parametrize("name", ["R", "h", "c0", "c1", "c2"])
def test_evaluate_refuses_negative_numbers(name):
    evaluate = {spec.name: spec.parts for spec in gfshadow_bounds()}["tube"]["tube_step"]
    inputs = {"R": 0.1, "h": 0.1, "m": 1.0, "c0": 0.0, "c1": 0.0, "c2": 0.0}
    assert evaluate(**inputs).certified
    with pytest.raises(AssumptionError, match=f"{name} must be not negative and finite, got -1.0"):
        evaluate(**{**inputs, name: -1.0})


def test_constants_that_overflow_end_the_tube_and_raise_nothing():
    weights = [np.full((2, 2), 1e80), np.full((2, 2), 1e80), np.full((1, 2), 1e80)]
    for name, y in (("square", [[1.0], [0.0]]), ("logistic", [[1.0], [-1.0]])):
        loss = loss_of([[1.0, 0.0], [0.0, 1.0]], y, name, n_outputs=1)
        for mode in "ABC":
            tube = Tube(weights, loss, mode=mode)
            assert tube.step(weights, 0.1) == math.inf
            assert tube.status == "certified until t = 0"
