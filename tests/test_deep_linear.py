"""Lemmas 1 and 2 and Proposition 1 against autograd's dense Hessians, in float64."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from torch_gfshadow.bounds import gfshadow_bounds, lemma1, lemma2, proposition1
from torch_gfshadow.bounds._chain import Chain, flat, unflat
from torch_gfshadow.bounds._deep_linear import Point
from torch_gfshadow.bounds._losses import Square, loss_of
from torch_gfshadow.bounds._scores import CrossEntropy, Logistic
from torch_gfshadow.bounds.lemma2 import blocks_matrix, by_norms, norms_matrix, smoothness
from torch_gfshadow.errors import AssumptionError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "public.json").read_text())
OURS = [case for case in GOLDEN if case["result"] in ("lemma1", "lemma2", "prop1")]
SPECS = {spec.name: spec.evaluate for spec in gfshadow_bounds()}
SPECS["prop1"] = SPECS["proposition1"]

# (d_0, …, d_n): one output and several, narrow and wide hidden layers, depths 2 to 6
SHAPES = [(3, 2, 1), (2, 4, 3), (5, 4, 4, 1), (3, 1, 2, 2), (5, 4, 4, 3), (2, 3, 3, 2, 2)]
SHAPES += [(3, 2, 5, 2, 1), (4, 4, 4, 4, 4, 2), (2, 2, 2, 2, 2, 2, 1), (6, 5, 5, 5, 5, 4)]
LOSSES = ("square", "cross_entropy", "logistic")


def value_in_torch(theta, shapes, x, y, loss):
    end, start = None, 0
    for rows, columns in shapes:
        w = theta[start : start + rows * columns].reshape(rows, columns)
        start += rows * columns
        end = w if end is None else w @ end
    scores = x @ end.T
    if loss == "square":
        return 0.5 * ((scores - y) ** 2).sum() / len(x)
    if loss == "cross_entropy":
        return F.cross_entropy(scores, y)
    # by way of log-softmax: softplus is cut off at 20, the second derivative of logaddexp at 800
    margins = (y * scores).reshape(-1)
    pairs = torch.stack([margins, torch.zeros_like(margins)], 1)
    return F.cross_entropy(pairs, torch.zeros(len(margins), dtype=torch.int64))


def random_stack(dims, loss, rng, count, scale=1.0):
    """Return ``count`` networks on one data set, and the data."""
    spread = rng.lognormal(0, 0.5, (count, 1, 1)) * scale
    weights = [
        spread
        * rng.normal(size=(count, b, a))
        / math.sqrt(a)
        * rng.lognormal(0, 0.3, (count, 1, 1))
        for a, b in pairwise(dims)
    ]
    x = rng.normal(size=(7, dims[0]))
    if loss == "square":
        return weights, x, rng.normal(size=(7, dims[-1]))
    if loss == "cross_entropy":
        return weights, x, rng.integers(0, dims[-1], 7)
    return weights, x, rng.choice([-1.0, 1.0], (7, 1))


def hessians(weights, x, y, loss):
    shapes = [w.shape[-2:] for w in weights]
    x, y = torch.tensor(x), torch.tensor(y)
    theta = torch.tensor(flat(weights))
    one = torch.func.hessian(lambda t: value_in_torch(t, shapes, x, y, loss))
    return torch.func.vmap(one, chunk_size=256)(theta).numpy()


def fits(dims, loss):
    return (dims[-1] == 1) == (loss == "logistic") or loss == "square"


CASES = [(dims, loss) for dims in SHAPES for loss in LOSSES if fits(dims, loss)]


@pytest.mark.parametrize("case", OURS, ids=[case["id"] for case in OURS])
def test_golden_values_are_reproduced(case):
    found = SPECS[case["result"]](**case["inputs"])
    tolerance = {"rel": case["tolerance"]["rtol"], "abs": case["tolerance"]["atol"]}
    for key, expected in case["expected"].items():
        assert found.value[key] == pytest.approx(expected, **tolerance), key
    assert found.certified
    assert found.status == "ok"


@pytest.mark.parametrize(("dims", "loss"), CASES)
def test_lemma_1_is_the_hessian_of_autograd(dims, loss):
    rng = np.random.default_rng(1)
    weights, x, y = random_stack(dims, loss, rng, 4)
    phi = loss_of(x, y, loss, n_outputs=dims[-1])
    shapes = [w.shape[-2:] for w in weights]
    dense = hessians(weights, x, y, loss)
    point = Point(Chain(weights), phi)
    scale = np.abs(dense).max()
    assert np.abs(point.hessian() - dense).max() <= 1e-13 * scale
    error = np.linalg.norm(point.hessian() - dense, 2, axis=(-2, -1))
    assert (error <= point.hessian_error()).all()
    value = [
        value_in_torch(torch.tensor(t), shapes, torch.tensor(x), torch.tensor(y), loss)
        for t in flat(weights)
    ]
    assert phi.value(point.chain.end) == pytest.approx([float(v) for v in value], rel=1e-13)
    directions = rng.normal(size=dense.shape[:2])
    for i in range(4):
        form = lemma1([w[i] for w in weights], unflat(directions[i], [w[i] for w in weights]), phi)
        assert form == pytest.approx(directions[i] @ dense[i] @ directions[i], rel=1e-11)
    gradient = torch.func.grad(
        lambda t: value_in_torch(t, shapes, torch.tensor(x), torch.tensor(y), loss)
    )(torch.tensor(flat(weights)[0]))
    apart = np.linalg.norm(flat(point.gradient())[0] - gradient.numpy())
    assert apart <= point.gradient_error()[0]


def check_lemma_2(count, seed):
    """Compare ``count`` cases per shape and loss; return (cases, bound/true of each bound)."""
    rng = np.random.default_rng(seed)
    total, ratios = 0, {name: [] for name in ("eq13", "spectral", "C_norms", "C_blocks", "N")}
    for dims, loss in CASES:
        weights, x, y = random_stack(dims, loss, rng, count, scale=rng.choice([0.2, 1.0, 1.5]))
        point = Point(Chain(weights), loss_of(x, y, loss, n_outputs=dims[-1]))
        dense = np.linalg.eigvalsh(hessians(weights, x, y, loss))
        blocks = blocks_matrix(point)
        n_part = -np.linalg.eigvalsh(point.hessian(gauss_newton=False))[:, 0]
        eq13, spectral = by_norms(point)
        bounds = {
            "eq13": eq13,
            "spectral": spectral,
            "C_norms": np.linalg.eigvalsh(norms_matrix(point))[:, -1],
            "C_blocks": np.linalg.eigvalsh(blocks)[:, -1],
            "N": n_part + point.hessian_error(),
        }
        slack = 1 + 1e-12
        assert (bounds["eq13"] * slack >= bounds["spectral"]).all()
        assert (bounds["spectral"] * slack >= bounds["C_norms"]).all()
        assert (bounds["C_norms"] * slack >= bounds["C_blocks"]).all()
        assert (bounds["C_blocks"] * slack >= n_part).all()
        for name, bound in bounds.items():
            assert (dense[:, 0] >= -bound).all(), (dims, loss, name)
            ratios[name] += list(bound[dense[:, 0] < 0] / -dense[:, 0][dense[:, 0] < 0])
        norm = np.abs(dense).max(-1)
        assert (smoothness(point) >= norm).all()
        if loss == "square":  # saturated, the others are flatter than the largest φ'' anywhere
            assert np.median(smoothness(point) / norm) < 3
        total += count
    return total, {name: float(np.median(r)) for name, r in ratios.items()}


def test_lemma_2_holds_on_2000_random_networks():
    total, ratios = check_lemma_2(count=110, seed=0)
    assert total >= 2000
    assert 1.0 <= ratios["N"] < ratios["C_blocks"] < ratios["C_norms"] < ratios["eq13"]
    assert ratios["C_blocks"] < 2.0 < ratios["eq13"]


@pytest.mark.slow
def test_lemma_2_holds_on_100000_random_networks():
    total, ratios = check_lemma_2(count=5600, seed=1)
    assert total >= 100_000
    print(total, ratios)


def test_lemma_2_matches_its_arrays_and_survives_any_size():
    rng = np.random.default_rng(3)
    weights, x, y = random_stack((3, 4, 2, 2), "square", rng, 1)
    single = [w[0] for w in weights]
    found = lemma2(single, Square.of(x, y))
    point = Point(Chain(single), Square.of(x, y))
    assert found.eq13 == pytest.approx(-float(by_norms(point)[0]))
    assert found.C_blocks == pytest.approx(-np.linalg.eigvalsh(blocks_matrix(point))[-1], rel=1e-9)
    # the inner product of norms overflows although W = 0: no bound, and no warning
    inner = [np.eye(2) * 1e200] * 3
    far = lemma2([np.zeros((2, 3)), *inner, np.zeros((2, 2))], Square.of(x, y))
    assert far.eq13 == far.C_blocks == -math.inf
    flat_point = lemma2([np.zeros((2, 3)), np.zeros((2, 2)), np.zeros((2, 2))], Square.of(x, y))
    assert flat_point.C_blocks == pytest.approx(0.0, abs=1e-12)
    deep = [np.eye(3)] * 60
    assert lemma2(deep, Square.of(x, rng.normal(size=(7, 3)))).C_blocks < 0


@pytest.mark.parametrize(("cls", "loss"), [(CrossEntropy, "cross_entropy"), (Logistic, "logistic")])
def test_constants_of_the_losses_hold_and_are_nearly_attained(cls, loss):
    rng = np.random.default_rng(0)
    d_n = 3 if loss == "cross_entropy" else 1
    x, y = np.array([[1.0, 2.0]]), [0] if d_n > 1 else [1.0]
    phi = loss_of(x, y, loss, n_outputs=d_n)
    assert isinstance(phi, cls)
    ends = rng.normal(size=(4000, d_n, 2)) * rng.lognormal(0, 1, (4000, 1, 1))
    second = np.linalg.norm(phi.hessian(ends), 2, axis=(-2, -1)).max()
    assert 0.95 * phi.smoothness < second <= phi.smoothness
    changes = rng.normal(size=ends.shape)
    changes /= np.sqrt((changes**2).sum((-2, -1), keepdims=True))
    h = 1e-4
    up, down = (phi.curvature(ends + s * h * changes, changes) for s in (1, -1))
    third = np.abs(up - down).max() / (2 * h)
    assert 0.5 * phi.third < third <= phi.third * (1 + 1e-6)


@pytest.mark.parametrize("target", [-1e-3, -10.0, -1e6])
@pytest.mark.parametrize("dims", [(3, 1, 2, 1), (2, 3, 2, 2), (2, 2, 5, 2, 2, 3)])
@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
def test_proposition_1_attains_its_target(dims, target, loss):
    if loss == "cross_entropy" and dims[-1] == 1:
        dims = (*dims[:-1], 2)
    rng = np.random.default_rng(2)
    _, x, y = random_stack(dims, loss, rng, 1)
    built = proposition1(dims, loss_of(x, y, loss, n_outputs=dims[-1]), target)
    dense = hessians([w[None] for w in built.weights], x, y, loss)[0]
    assert np.linalg.eigvalsh(dense)[0] == pytest.approx(target, rel=1e-10)
    assert built.lambda_min == pytest.approx(target, rel=1e-13)
    d = flat(built.direction)
    assert d @ d == pytest.approx(1.0)
    assert lemma2(built.weights, loss_of(x, y, loss, n_outputs=dims[-1])).C_blocks == pytest.approx(
        target, rel=1e-9
    )


W = [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]]]
X, Y = [[1.0, 2.0], [0.5, -1.0]], [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("result", "change", "message"),
    [
        ("lemma2", {"Ws": W[:1]}, "depth of Ws must be at least 2, got 1"),
        (
            "lemma2",
            {"Ws": [W[0], [[1.0, 1.0, 1.0]]]},
            r"Ws\[1\] must be of shape any × 2, got 1 × 3",
        ),
        ("lemma2", {"Ws": [W[0], [[math.nan, 1.0]]]}, r"Ws\[1\] must be finite, got nan"),
        ("lemma2", {"Ws": [W[0], [[1.0], [1.0, 2.0]]]}, r"Ws\[1\] must be an array of numbers"),
        ("lemma2", {"X": [[1.0], [2.0]]}, "X must be of shape any × 2, got 2 × 1"),
        ("lemma2", {"Y": [[1.0]]}, "Y must be of shape 2 × 1, got 1 × 1"),
        ("lemma2", {"loss": "absolute"}, "loss must be one of square, .* got 'absolute'"),
        (
            "lemma2",
            {"Ws": [[[1e200, 0], [0, 1]], [[1e200, 1]]]},
            "W_n ⋯ W_1 must be finite, got inf",
        ),
        ("lemma2", {"loss": "logistic"}, "Y must be ±1 for the logistic loss, got 0"),
        ("lemma1", {"dWs": W[:1]}, "dWs must be a list of 2 matrices, got 1 matrices"),
        ("lemma1", {"dWs": [W[1], W[1]]}, r"dWs\[0\] must be of shape 2 × 2, got 1 × 2"),
        ("prop1", {"dims": [2, 2, 1]}, "depth of dims must be at least 3, got 2"),
        ("prop1", {"dims": [2, 2, 0, 1]}, r"dims\[2\] must be an integer of at least 1, got 0"),
        ("prop1", {"dims": [3, 2, 2, 1]}, "d_n × d_0 must be 1 × 2 as in the data, got 1 × 3"),
        ("prop1", {"target": 1.0}, r"target must be negative, got 1\.0"),
        ("prop1", {"Y": [[0.0], [0.0]]}, "‖∇φ\\(0\\)‖ must be positive, got 0"),
    ],
)
def test_violated_assumptions_are_named_with_their_number(result, change, message):
    inputs = {
        "lemma1": {"Ws": W, "dWs": W, "X": X, "Y": Y},
        "lemma2": {"Ws": W, "X": X, "Y": Y},
        "prop1": {"dims": [2, 2, 2, 1], "X": X, "Y": Y, "target": -1.0},
    }[result]
    with pytest.raises(AssumptionError, match=message):
        SPECS[result](**{**inputs, **change})


def test_parameters_of_a_module_are_taken_as_they_are():
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 1, bias=False)
    )
    found = lemma2(list(model.parameters()), Square.of(torch.tensor(X), torch.tensor(Y)))
    assert found.eq13 <= found.C_blocks < 0
