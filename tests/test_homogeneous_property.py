"""λ_min of random networks with activations against the limits: no violation, away from kinks.

Every case is compared with the smallest eigenvalue of its dense float64 Hessian.
"""

import itertools
import math
import random
import statistics

import pytest
import torch
from cases import F64, objective_of, seeded
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)

from torch_gfshadow.bounds import _homogeneous as homogeneous
from torch_gfshadow.bounds import convolution, nonlinear
from torch_gfshadow.errors import AssumptionError
from torch_gfshadow.network import recognise

SLOPES = (0.0, 0.0, 0.1, 0.5, -0.5, 1.5, -1.0)
ROUNDING = 1e-9


def draws(seed):
    rng = random.Random(seed)
    depth = rng.choice([2, 2, 3, 3, 4])
    widths = [rng.randint(1, 4) for _ in range(depth + 1)]
    return rng, seeded(seed), widths, 10 ** rng.uniform(-1, 0.5)


def data(rng, generator, n_in, n_out):
    size = rng.randint(1, 5)
    x = torch.randn(size, n_in, generator=generator, dtype=F64)
    y = torch.randn(size, n_out, generator=generator, dtype=F64)
    loss = rng.choice(["square", "square", "logistic", "cross_entropy"])
    y = {"logistic": y.sign(), "cross_entropy": y.argmax(1)}.get(loss, y)
    slopes = {"slope_negative": rng.choice(SLOPES), "slope_positive": rng.choice([1.0, 1.0, 2.0])}
    return {"X": x, "Y": y, "loss": loss, **slopes}


def fully_connected(seed):
    rng, generator, widths, scale = draws(seed)
    shapes = zip(widths[1:], widths, strict=False)
    weights = [scale * torch.randn(b, a, generator=generator, dtype=F64) for b, a in shapes]
    return {"Ws": weights, **data(rng, generator, widths[0], widths[-1])}


def weight_sharing(seed):
    rng, generator, widths, scale = draws(seed)
    index, weights = [], []
    for inner, outer in itertools.pairwise(widths):
        n_weights = rng.randint(1, inner * outer)
        rows = []
        for _ in range(outer):
            row = rng.sample(range(n_weights), min(inner, n_weights)) + [-1] * inner
            rows.append(rng.sample(row[:inner], inner))
        index.append(rows)
        weights.append(scale * torch.randn(n_weights, generator=generator, dtype=F64))
    return {"index": index, "weights": weights, **data(rng, generator, widths[0], widths[-1])}


def sweep(make, evaluate, keys, seeds):
    """Assert that every limit holds in every case; return the median of limit / λ_min per key."""
    tightness = {key: [] for key in keys}
    tried = 0
    for seed in seeds:
        found = evaluate(**make(seed))
        if not found.certified:  # exactly at a kink: there is no Hessian to compare with
            continue
        tried += 1
        smallest = found.value["lambda_min"]
        size = max(1.0, abs(found.value["rhs"]))
        for key in keys:
            limit = found.value[key]
            assert limit <= smallest + ROUNDING * size, (seed, key, limit, smallest)
            if smallest < -1e-3:
                tightness[key].append(limit / smallest)
    assert tried > 0.95 * len(seeds)
    return {key: statistics.median(values) for key, values in tightness.items()}


def test_the_fully_connected_version_holds_in_2000_random_networks():
    found = sweep(fully_connected, nonlinear.evaluate, ["rhs", "rhs_C_im2col"], range(2000))
    assert 2.0 < found["rhs"] < 8.0
    assert 1.2 < found["rhs_C_im2col"] < 2.5


def test_the_weight_sharing_version_holds_in_2000_random_networks():
    keys = ["rhs", "rhs_kappa", "rhs_weight_norms", "rhs_C_im2col"]
    found = sweep(weight_sharing, convolution.evaluate, keys, range(2000))
    assert found["rhs_C_im2col"] < found["rhs_kappa"] <= found["rhs"] <= found["rhs_weight_norms"]
    assert 1.2 < found["rhs_C_im2col"] < 3.0


@pytest.mark.slow
def test_both_hold_in_100000_random_networks():
    found = sweep(fully_connected, nonlinear.evaluate, ["rhs", "rhs_C_im2col"], range(100_000))
    print("fully connected", found)
    keys = ["rhs", "rhs_kappa", "rhs_weight_norms", "rhs_C_im2col"]
    print("weight sharing", sweep(weight_sharing, convolution.evaluate, keys, range(100_000)))


# --- real modules, as they are recognised


def module(seed):
    """A random network of convolutions, pools, activations and a linear layer."""
    rng = random.Random(seed)
    channels, side, parts = 1, rng.choice([5, 6, 7]), []
    for _ in range(rng.choice([1, 1, 2])):
        kernel, stride, padding = rng.choice([1, 2, 3]), rng.choice([1, 1, 2]), rng.choice([0, 1])
        if side + 2 * padding < kernel:
            break
        wide = rng.choice([1, 2])
        options = {"stride": stride, "padding": padding, "bias": False, "dtype": F64}
        parts.append(nn.Conv2d(channels, wide, kernel, **options))
        channels, side = wide, (side + 2 * padding - kernel) // stride + 1
        parts.append(rng.choice([nn.ReLU(), nn.LeakyReLU(0.3), nn.Identity()]))
        if side >= 3 and rng.random() < 0.6:
            pool = rng.choice([nn.MaxPool2d, nn.AvgPool2d])
            size, step = rng.choice([(2, 2), (2, 1), (3, 2)])
            parts.append(pool(size, step))
            side = (side - size) // step + 1
    parts += [nn.Flatten(), nn.Linear(channels * side**2, 2, bias=False, dtype=F64)]
    return nn.Sequential(*parts), rng


def limits_of(point):
    """The three limits of λ_min, loosest first."""
    kappa = [layer.sharing()[1] for layer in point.layers]
    return [
        homogeneous.by_norms(point, kappa, point.norms),
        homogeneous.by_blocks(point, summed=True),
        homogeneous.by_blocks(point),
    ]


def dense_lambda_min(objective):
    """λ_min by double backward through the model itself."""
    layout, sandbox = objective.layout, objective.sandbox
    ((batch, _),) = objective.chunks()
    pure = sandbox.pure(batch)

    def f(flat):
        parts = torch.split(flat, list(layout.sizes))
        shaped = zip(layout.names, layout.shapes, parts, strict=True)
        return pure({name: part.view(shape) for name, shape, part in shaped})

    with sandbox.guard():
        hessian = torch.autograd.functional.hessian(f, layout.current())
    return float(torch.linalg.eigvalsh((hessian + hessian.mT) / 2)[0])


def check_module(seed):
    torch.manual_seed(seed)
    model, rng = module(seed)
    x = torch.randn(4, 1, 5, 5, dtype=F64)
    for side in (5, 6, 7):
        try:
            x = torch.randn(4, 1, side, side, dtype=F64)
            model(x)
            break
        except RuntimeError:
            continue
    loss = rng.choice([F.mse_loss, F.cross_entropy])
    y = torch.randn(4, 2, dtype=F64)
    y = y.argmax(1) if loss is F.cross_entropy else y
    objective = objective_of(model, lambda model, b: loss(model(b[0]), b[1]), (x, y))
    point = recognise(objective, objective.layout.current())
    smallest = dense_lambda_min(objective)
    limits = limits_of(point)
    if point.n_kinks:  # one pool after another: copies of a unit tie
        return None
    for limit in limits:
        assert limit <= smallest + ROUNDING * max(1.0, abs(limits[0])), (seed, limit, smallest)
    assert limits[0] <= limits[1] * (1 - 1e-9) <= limits[2] * (1 - 2e-9)
    return limits[2] / smallest if smallest < -1e-6 else None


def test_recognised_modules_keep_the_limits():
    found = [ratio for seed in range(150) if (ratio := check_module(seed)) is not None]
    assert len(found) > 100
    assert 1.0 <= statistics.median(found) < 8.0


@pytest.mark.slow
def test_many_recognised_modules_keep_the_limits():
    print(statistics.median(r for seed in range(5000) if (r := check_module(seed)) is not None))


# --- what is refused


GIVEN = {"X": [[1.0, 2.0]], "Y": [[1.0]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Ws": [[[1.0, 2.0]]]}, "Ws must be two or more layers, got 1"),
        ({"Ws": [[[1.0, 2.0]], [[1.0, 2.0]]]}, r"Ws\[1\] must be d × 1, got \[1, 2\]"),
        ({"Ws": [[[1.0, float("nan")]], [[1.0]]]}, r"Ws\[0\] must be finite, got NaN"),
        ({"Ws": [[[1.0], [2.0, 3.0]], [[1.0]]]}, r"Ws\[0\] must be a matrix of numbers"),
        ({"X": [[1.0]]}, "X must be S × 2"),
        ({"Y": [[1.0, 2.0]]}, "Y must be 1 × 1"),
        ({"loss": "zero_one"}, "loss must be one of square, logistic, cross_entropy"),
        ({"loss": "cross_entropy", "Y": [0.5]}, "Y must be 1 class labels"),
        ({"slope_negative": float("inf")}, "slope_negative must be finite, got inf"),
        ({"slope_negative": "0"}, "slope_negative must be finite, got '0'"),
    ],
)
def test_what_the_fully_connected_version_does_not_cover_is_refused(change, message):
    given = {"Ws": [[[1.0, 2.0]], [[1.0]]], **GIVEN}
    assert nonlinear.evaluate(**given).certified
    with pytest.raises(AssumptionError, match=message):
        nonlinear.evaluate(**{**given, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": [[[0, 1]]]}, "index must be two or more layers, got 1"),
        ({"index": [[[0, 0]], [[0]]]}, r"index\[0\] must be without repetition in a row"),
        ({"index": [[[0, 2]], [[0]]]}, r"index\[0\] must be from −1 to 1"),
        ({"index": [[[0, 1]], [[0, -1]]]}, r"index\[1\] must be 1 columns, got 2 columns"),
        ({"weights": [[1.0, 2.0]]}, "weights must be 2 vectors, got 1"),
        ({"weights": [[1.0, float("inf")], [1.0]]}, r"weights\[0\] must be finite"),
    ],
)
def test_what_the_weight_sharing_version_does_not_cover_is_refused(change, message):
    given = {"index": [[[0, 1]], [[0]]], "weights": [[1.0, 2.0], [1.0]], **GIVEN}
    assert convolution.evaluate(**given).certified
    with pytest.raises(AssumptionError, match=message):
        convolution.evaluate(**{**given, **change})


def test_a_point_on_a_kink_is_not_certified():
    found = nonlinear.evaluate([[[1.0, -1.0]], [[1.0]]], [[1.0, 1.0]], [[1.0]])
    assert not found.certified
    assert found.value["min_abs_preactivation"] == 0.0


def test_products_that_overflow_leave_a_limit():
    deep = [[[1e200]], [[1e-200]], [[1e200]], [[1e-200]]]
    found = nonlinear.evaluate(deep, [[1.0]], [[0.0]])
    assert found.value["rhs"] == found.value["rhs_C_im2col"] == -math.inf
    assert found.value["lambda_min"] is None
