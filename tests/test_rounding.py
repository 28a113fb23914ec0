"""Limits of λ_min hold where float64 has lost what they are made of."""

import math

import pytest
import torch
from cases import F64, objective_of
from mpmath import exp, mp, mpf, sqrt
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)

from torch_gfshadow.bounds import _homogeneous as homogeneous
from torch_gfshadow.bounds import convolution, nonlinear
from torch_gfshadow.bounds.lemma2_live import bounds_at
from torch_gfshadow.network import NetworkPoint, recognise
from torch_gfshadow.network.rounding import Slope
from torch_gfshadow.network.slopes import curves, slope_of
from torch_gfshadow.network.tape import Tape

GAPS = [1.0, 5.0, 20.0, 40.0, 75.0]


def block(gap, x):
    """The norm of the only block of two layers, one sample and two classes: ‖p‖·|x|, p exact."""
    with mp.workdps(60):
        return -sqrt(2) / (1 + exp(mpf(gap))) * mpf(x)


@pytest.mark.parametrize("gap", GAPS)
def test_a_saturated_softmax_does_not_break_the_limit(gap):
    """softmax − one-hot is 0 in float64 long before it is 0."""
    weights = {"Ws": [[[1.0]], [[gap], [0.0]]], "X": [[1.0]], "Y": [[0.0]]}
    found = nonlinear.evaluate(**weights, loss="cross_entropy")
    assert found.certified
    shared = {"index": [[[0]], [[0], [1]]], "weights": [[1.0], [gap, 0.0]]}
    same = convolution.evaluate(**shared, X=[[1.0]], Y=[[0.0]], loss="cross_entropy")
    for value in (found.value, same.value):
        for key in (k for k in value if k.startswith("rhs")):
            assert value[key] <= block(gap, 1.0), key
            assert value[key] >= block(gap, 1.0) * 1.0001 - 1e-11


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("name", ["module", "functional", "by hand"])
def test_nor_does_one_in_a_module(gap, name):
    losses = {
        "module": lambda h, y: nn.CrossEntropyLoss()(h, y),
        "functional": lambda h, y: F.nll_loss(F.log_softmax(h, 1), y),
        "by hand": lambda h, y: (torch.logsumexp(h, 1) - h.gather(1, y[:, None])[:, 0]).mean(),
    }
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.copy_(torch.tensor([[gap], [0.0]]))
    batch = torch.tensor([[1.0]], dtype=F64), torch.tensor([0])
    objective = objective_of(model, lambda m, b: losses[name](m(b[0]), b[1]), batch)
    point = recognise(objective, objective.layout.current())
    assert isinstance(point, NetworkPoint)
    for limit in (
        homogeneous.by_blocks(point),
        homogeneous.by_norms(point, [1.0, 1.0], point.norms),
        bounds_at(point).C_blocks,
        bounds_at(point).eq13,
    ):
        assert 1.001 * 2 * block(gap, 1.0) - 1e-11 <= limit <= block(gap, 1.0)


def slope(loss, h):
    """What is known of the accuracy of a loss at outputs h."""
    layer = nn.Linear(h.shape[1], h.shape[1], bias=False, dtype=F64)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(h.shape[1]))
    with Tape({layer.weight: "w"}) as tape:
        outputs = layer(h)
        value = loss(outputs)
    return slope_of(value, outputs, tape.curved), outputs, value


LOSSES = {
    "mse_loss": lambda h: F.mse_loss(h, torch.zeros(h.shape, dtype=F64)),
    "a sum of squares": lambda h: (3 * (2 * h - 1)).square().sum(),
    "a product": lambda h: (h * h).mean(),
    "a dot product": lambda h: (lambda r: r.dot(r) / 4)((h - 1).flatten()),
    "a power": lambda h: ((h - 1) ** 4).sum(),
    "exp": lambda h: torch.exp(-h).mean(),
    "huber": lambda h: F.huber_loss(h, torch.ones(h.shape, dtype=F64), delta=0.5),
    "logistic": lambda h: F.softplus(-h, beta=3.0).sum(),
    "log1p": lambda h: torch.log1p(torch.exp(-2 * h)).mean(),
    "bce": lambda h: F.binary_cross_entropy_with_logits(h, torch.full(h.shape, 0.25, dtype=F64)),
    "cross-entropy": lambda h: 5 * F.cross_entropy(h, torch.zeros(len(h), dtype=torch.long)),
    "scaled in place": lambda h: F.cross_entropy(h, torch.arange(len(h)) % 3).mul_(7.0),
    "two of them": lambda h: (
        F.mse_loss(h, torch.ones(h.shape, dtype=F64)) + F.cross_entropy(h, torch.arange(len(h)) % 3)
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_bend_of_a_loss_is_no_less_than_its_hessian(name):
    generator = torch.Generator().manual_seed(0)
    for size in (0.1, 1.0, 5.0):
        h = size * torch.randn(4, 3, generator=generator, dtype=F64)
        found, outputs, _ = slope(LOSSES[name], h)
        hessian = torch.autograd.functional.hessian(LOSSES[name], outputs.detach())
        norm = float(torch.linalg.matrix_norm(hessian.reshape(12, 12), 2))
        assert norm <= found.bend * (1 + 1e-9)
        assert found.bend <= 400 * max(norm, 1e-3) or name in ("exp", "log1p", "logistic")


def test_a_sample_that_is_all_but_certain_costs_nothing():
    """Its signal underflows; its inputs must not count."""
    weights = {"Ws": [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]]], "slope_negative": 1.0}
    near = [[-1.0, 0.5], [0.5, -1.0], [0.3, 0.2]]
    for far in (300.0, 720.0, 740.0, 800.0):  # the slope is e^{−far}: normal, denormal, zero
        alone, both = (
            nonlinear.evaluate(**weights, X=x, Y=[[1.0]] * len(x), loss="logistic").value
            for x in (near, [*near, [far, 0.0]])
        )
        assert both["rhs_C_im2col"] == pytest.approx(0.75 * alone["rhs_C_im2col"], rel=1e-8)


def test_an_error_beyond_all_measure_falls_back_on_the_largest_bend():
    known = Slope(bend=0.25, here=torch.zeros(2, dtype=F64), share=0.0)
    lost = known.error(torch.tensor([1e-3, 1e4], dtype=F64), torch.zeros(2, dtype=F64))
    assert lost.tolist() == [0.0, 2500.0]


def test_a_scaling_is_no_curve():
    h = torch.ones(2, 2, dtype=F64)
    found, _, _ = slope(lambda h: (2 * h).sum(), h)
    assert (found.bend, found.floor) == (0.0, 0.0)


def test_a_penalty_on_the_weights_counts_for_nothing():
    layer = nn.Linear(2, 1, bias=False, dtype=F64)
    with Tape({layer.weight: "w"}) as tape:
        h = layer(torch.ones(3, 2, dtype=F64))
        F.mse_loss(h, torch.zeros(3, 1, dtype=F64)) + layer.weight.square().sum()
    assert [call.name for call in tape.curved] == ["mse_loss"]
    assert all(curves(call) for call in tape.curved)


def test_at_a_minimum_the_room_is_that_of_the_sums():
    """Residuals of rounding size: the limit stays below the exact −‖p‖|x| of the stored numbers."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        a, b, x = (torch.rand(3, generator=generator, dtype=F64) + 0.5).tolist()
        y = a * b * x  # rounded: the residual is not 0
        found = nonlinear.evaluate([[[a]], [[b]]], [[x]], [[y]], slope_negative=1.0).value
        with mp.workdps(60):
            exact = -abs(mpf(a) * mpf(b) * mpf(x) - mpf(y)) * mpf(x)
        assert found["rhs_C_im2col"] <= exact
        assert found["rhs"] <= exact
        assert math.isclose(found["rhs"], 0.0, abs_tol=1e-13)
