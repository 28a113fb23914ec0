"""Procedure 1 on tensors and modules, and what flows conserve, seen along the shadow."""

import math
from itertools import pairwise

import pytest
import torch
from cases import beside, objective_of
from torch import nn

import torch_gfshadow as gfs
from torch_gfshadow.balance import unbalancedness
from torch_gfshadow.conserved import LEVELS, conserved_level, of_level, pairs
from torch_gfshadow.errors import AssumptionError
from torch_gfshadow.inits import BalancedInit, balanced_, imbalance
from torch_gfshadow.probes import Balancedness

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def empty(dims, dtype=F64):
    return [torch.empty(b, a, dtype=dtype) for a, b in pairwise(dims)]


def product(weights):
    out = weights[0]
    for w in weights[1:]:
        out = w @ out
    return out


# --- Procedure 1


@pytest.mark.parametrize("dims", [(5, 4, 1), (3, 8, 2, 6, 4), (1, 2, 1), (7, 1, 7)])
def test_weights_are_balanced_small_and_of_full_rank(dims):
    weights = empty(dims)
    assert balanced_(weights, generator=generator()) is weights
    assert unbalancedness(weights) < 1e-15
    norm = float(product(weights).norm())
    assert 0 < norm <= 0.2
    # above rounding, not above torch's share of the largest: Gaussian products are ill-conditioned
    assert int(torch.linalg.matrix_rank(product(weights))) == min(dims)


def test_the_product_is_the_matrix_asked_for():
    matrix = torch.randn(2, 5, generator=generator(), dtype=F64)
    weights = empty((5, 3, 4, 2))
    balanced_(weights, matrix, generator=generator(1))
    torch.testing.assert_close(product(weights), matrix, rtol=1e-12, atol=1e-13)
    balanced_(weights, lambda dn, d0: torch.ones(dn, d0, dtype=F64))
    torch.testing.assert_close(product(weights), torch.ones(2, 5, dtype=F64))


def test_without_turning_hidden_units_beyond_the_rank_are_zero():
    weights = balanced_(empty((5, 4, 1)), turn=False, generator=generator())
    assert torch.count_nonzero(weights[0][1:]) == 0
    weights = balanced_(empty((5, 4, 1)), generator=generator())
    assert torch.count_nonzero(weights[0]) == 20


def test_single_precision_is_balanced_to_its_rounding():
    weights = balanced_(empty((6, 5, 3), torch.float32), radius=1.0, generator=generator())
    assert 1e-10 < unbalancedness(weights) < 1e-6


def test_a_generator_decides_and_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    one, two = (balanced_(empty((4, 3, 2)), generator=generator(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("weights", "matrix", "message"),
    [
        (empty((3, 2)), None, "depth n must be at least 2, got 1"),
        ([torch.empty(3), torch.empty(2, 3)], None, r"weights\[0\] must be a matrix, got shape"),
        ([torch.empty(3, 2), torch.empty(2, 4)], None, r"weights\[1\] must be fitting the layer"),
        (empty((3, 1, 3)), torch.eye(3), r"rank .* must be at most min\(dims\) = 1, got 3"),
        (empty((3, 2, 3)), torch.eye(2), r"end-to-end matrix must be of shape \(3, 3\)"),
        (empty((2, 2, 2)), math.nan * torch.eye(2), "end-to-end matrix must be finite, got nan"),
    ],
)
def test_what_cannot_be_balanced_is_refused(weights, matrix, message):
    with pytest.raises(AssumptionError, match=message):
        balanced_(weights, matrix)


def test_a_module_is_initialised_in_place_with_zero_biases():
    model = nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.Dropout(), nn.Linear(5, 1)))
    assert BalancedInit("0.1")(model) is model
    assert imbalance(model)["full"] < 1e-7
    assert float((model[1][1].weight @ model[0].weight).detach().norm()) <= 0.1
    assert float(model[0].bias.detach().abs().max()) == 0.0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)), "got one with Conv2d"),
        (nn.Linear(2, 2), "module must be a chain of two or more Linear, got 1 of them"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 2)), r"module: weights\[1\] must be fitting"),
    ],
)
def test_a_module_that_is_no_chain_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        BalancedInit()(model)


@pytest.mark.parametrize("radius", ["big", 0.0, -1.0, math.inf])
def test_a_radius_is_positive_and_finite(radius):
    with pytest.raises(ValueError, match="radius must be positive and finite, got"):
        BalancedInit(radius)
    if not isinstance(radius, str):
        with pytest.raises(ValueError, match="radius must be positive and finite, got"):
            balanced_(empty((2, 2, 2)), radius=radius)


def test_imbalance_measures_three_things():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
        model[1].weight.copy_(torch.tensor([[1.0, 3.0]]))
    # W_2ᵀW_2 − W_1W_1ᵀ = [[1, 3], [3, 9]] − [[2, 2], [2, 4]] = [[−1, 1], [1, 5]]
    found = imbalance(model)
    ends = torch.linalg.eigvalsh(torch.tensor([[-1.0, 1.0], [1.0, 5.0]], dtype=F64))
    assert found["full"] == pytest.approx(float(ends.abs().max()))
    assert found["per_unit"] == pytest.approx(5.0)
    assert found["per_layer"] == pytest.approx(4.0)
    assert math.isnan(imbalance(nn.Linear(2, 2))["full"])


# --- conservation


def linear():
    return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False), nn.Linear(3, 2))


def relu():
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, 2)
    )


def conv():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 1), nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


def conv_wide():
    """Several columns per channel after flattening."""
    return nn.Sequential(
        nn.Unflatten(1, (2, 3, 3)), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )


def tanh():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def normalised():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


NETWORKS = {
    linear: (4, "full"), relu: (4, "per_unit"), conv: (36, "per_unit"),
    conv_wide: (18, "per_unit"), tanh: (4, None),
}  # fmt: skip


def squared(model, batch):
    return 0.5 * (model(batch[0]) - batch[1]).square().sum(1).mean()


def attached(build, inputs, lr=0.1, **options):
    torch.manual_seed(0)
    model = build().double()
    batch = torch.randn(12, inputs, dtype=F64), 3 * torch.randn(12, 2, dtype=F64)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    shadow = gfs.attach(
        optimizer, model, squared, data=batch, probes=["balancedness"], probe_every=1,
        on_error="raise", **options,
    )  # fmt: skip

    def step():
        optimizer.zero_grad()
        squared(model, batch).backward()
        optimizer.step()

    return model, shadow, step


@pytest.mark.parametrize("build", [b for b, (_, level) in NETWORKS.items() if level])
def test_the_flow_conserves_it_and_gradient_descent_nearly(build):
    """Along the shadow the conserved quantity stays; along GD it moves by O(η²) a step."""
    inputs, level = NETWORKS[build]
    torch.manual_seed(0)
    model = build().double()
    batch = torch.randn(12, inputs, dtype=F64), 3 * torch.randn(12, 2, dtype=F64)
    objective = objective_of(model, squared, batch)
    tol = 1e-10 if build is linear else 1e-4  # across kinks every method is first order
    run = beside(objective, 0.02, 30, config=gfs.solvers.Dopri5(rtol=tol, atol=0.1 * tol))
    assert len(run.shadows) == 30
    start = objective.layout.current(F64)
    before = quantities(objective, start, level)
    moved = max(
        float((now - then).abs().max())
        for state in run.shadows[::5]
        for now, then in zip(quantities(objective, state.double(), level), before, strict=True)
    )
    assert float((run.shadows[-1] - start).norm()) > 0.3
    assert moved < 50 * tol
    _, shadow, step = attached(build, inputs)
    for _ in range(30):
        step()
    assert shadow.records[-1].extras["balancedness"]["change"] > 5 * moved


def quantities(objective, theta, level):
    return [of_level(p.difference, level) for p in pairs(objective.layout.unflatten(theta))]


@pytest.mark.parametrize("build", NETWORKS)
def test_the_probe_finds_out_what_is_conserved_from_the_gradient_alone(build):
    inputs, level = NETWORKS[build]
    expected = [level is not None and LEVELS.index(name) >= LEVELS.index(level) for name in LEVELS]
    _, shadow, step = attached(build, inputs)
    for _ in range(5):
        step()
    for record in shadow.records:
        measured = record.extras["balancedness"]
        assert [measured[f"conserves_{name}"] for name in LEVELS] == expected
        assert (measured["rate"] < 1e-9) == bool(level)
        assert measured["full"] >= measured["per_unit"] > 0
    assert shadow.records[0].extras["balancedness"]["change"] == 0.0
    assert shadow.records[-1].extras["balancedness"]["change"] > 0.0


def test_normalisation_conserves_nothing():
    torch.manual_seed(0)
    model = normalised().double()
    batch = torch.randn(12, 4, dtype=F64), torch.randn(12, 2, dtype=F64)
    squared(model, batch).backward()
    parameters = dict(model.named_parameters())
    found = pairs(parameters, {name: p.grad for name, p in parameters.items()})
    assert conserved_level(found, 1e-9) is None


def test_the_rate_is_the_derivative_of_the_difference():
    torch.manual_seed(0)
    model = tanh().double()
    batch = torch.randn(12, 4, dtype=F64), torch.randn(12, 2, dtype=F64)
    squared(model, batch).backward()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    slopes = {name: p.grad for name, p in model.named_parameters()}
    (pair,) = pairs(parameters, slopes)
    h = 1e-6
    ahead, behind = (
        pairs({name: p - s * h * slopes[name] for name, p in parameters.items()})[0].difference
        for s in (1, -1)
    )
    torch.testing.assert_close(pair.rate, (ahead - behind) / (2 * h), rtol=1e-7, atol=1e-9)
    for level in LEVELS:
        assert 0 < pair.relative_rate(level) <= 1


def test_decay_shrinks_the_conserved_quantity_exponentially():
    """One exact step of the decayed flow's linear part: D(t) = e^{−2wt} D(0)."""
    torch.manual_seed(0)
    model = linear().double()
    batch = torch.randn(12, 4, dtype=F64), torch.randn(12, 2, dtype=F64)
    squared(model, batch).backward()
    w = 0.3
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    slopes = {name: p.grad + w * p.detach() for name, p in model.named_parameters()}
    for pair in pairs(parameters, slopes):
        torch.testing.assert_close(pair.rate, -2 * w * pair.difference, rtol=1e-10, atol=1e-12)


def test_a_model_without_neighbours_has_no_numbers():
    _, shadow, step = attached(lambda: nn.Linear(4, 2), 4)
    step()
    assert shadow.records[-1].extras["balancedness"] == {"neighbours": 0}


def test_the_probe_goes_on_where_a_saved_one_stopped():
    first, second = Balancedness("1e-6"), Balancedness()
    first._first = [torch.ones(2, 2)]
    second.load_state_dict(first.state_dict())
    assert torch.equal(second._first[0], torch.ones(2, 2))


@pytest.mark.parametrize("tol", ["x", 0.0, -1.0])
def test_a_tolerance_is_positive(tol):
    with pytest.raises(ValueError, match="tol must be positive and finite, got"):
        Balancedness(tol)
