"""Gradients of linear layers that are added where they belong: the same, and nothing is stored."""

import math
import sys

import pytest
import torch
from cases import F64, network, objective_of, seeded, squared
from pages import ROOT
from test_kinks import Checkpointed, deep
from torch import nn
from torch.nn import functional as F  # noqa: N812

from torch_gfshadow import _blocks, _direct
from torch_gfshadow._blocks import Stretch

sys.path.insert(0, str(ROOT))

from benchmarks import memory


def batch(*shape, outputs=3):
    make = seeded(1)
    return torch.randn(*shape, generator=make, dtype=F64), torch.randn(
        shape[0], outputs, generator=make, dtype=F64
    )


class Tied(nn.Module):
    """One matrix as an embedding's transpose, twice as a layer, and once multiplied by hand."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5).to(F64)
        self.out = nn.Linear(5, 3, bias=False).to(F64)

    def forward(self, x):
        x = torch.tanh(self.inner(torch.tanh(self.inner(x))))
        return self.out(x) + F.linear(input=x @ self.inner.weight, weight=self.out.weight)


class Sequence(nn.Module):
    """Linear on three axes, and inside attention, where a part of a matrix is used."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True).to(F64)
        self.out = nn.Linear(4, 3).to(F64)

    def forward(self, x):
        return self.out(self.attention(x, x, x)[0]).mean(1)


def penalty(model, data):
    """A loss that differentiates by the inputs on its way."""
    x = data[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return squared(model, data) + slope.square().sum()


def seeded_model(make):
    torch.manual_seed(0)
    return make()


CASES = {
    "network": (lambda: network(nn.Tanh)[0], network(nn.Tanh)[1], squared),
    "tied": (Tied, batch(6, 5), squared),
    "attention": (Sequence, batch(6, 7, 4), squared),
    "gradient penalty": (Tied, batch(6, 5), penalty),
    "without bias": (lambda: network(nn.ReLU, bias=False)[0], network(nn.ReLU)[1], squared),
}


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_what_is_added_is_the_gradient(name, chunks, monkeypatch):
    monkeypatch.setattr(_direct, "LEAST", 1)
    used = []
    apply = _direct._Linear.apply
    monkeypatch.setattr(_direct._Linear, "apply", lambda *a: used.append(1) or apply(*a))
    make, data, loss = CASES[name]
    model = seeded_model(make)
    given = data if chunks == 1 else [tuple(t[:1] for t in data), tuple(t[1:] for t in data)]
    objective = objective_of(model, loss, given)
    theta = 1.1 * objective.layout.current()
    value, grad = objective.loss_and_grad(theta, "flow")
    assert not used
    out = torch.ones_like(theta)
    assert objective.add_grad(out, theta, -0.5, "flow") == pytest.approx(value, rel=1e-13)
    torch.testing.assert_close(out, 1.0 - 0.5 * grad, rtol=1e-11, atol=1e-13)
    assert used
    assert all(p.grad is None for p in model.parameters())
    # and with slopes averaged over a stretch
    entered = 0.95 * theta
    value, grad = objective.loss_and_grad(theta, "flow", entered=entered)
    stretch = Stretch([(theta, 1.0)], [(entered, 1.0)])
    assert objective.write_grad(out, stretch, "flow") == pytest.approx(value, rel=1e-13)
    torch.testing.assert_close(out, grad, rtol=1e-11, atol=1e-13)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("averaged", [True, False])
def test_a_checkpointed_model_does_without(reentrant, averaged, monkeypatch):
    monkeypatch.setattr(_direct, "LEAST", 1)
    model, data = deep(nn.ReLU())
    objective = objective_of(Checkpointed(model, reentrant), squared, data)
    theta = objective.layout.current()
    _, grad = objective.loss_and_grad(theta, "setup")
    out = torch.zeros_like(theta)
    for _ in range(2):
        if averaged:
            objective.write_grad(out, Stretch([(theta, 1.0)], [(theta, 0.99)]), "flow")
        else:
            objective.add_grad(out.zero_(), theta, 1.0, "flow")
        torch.testing.assert_close(out, grad, rtol=1e-12, atol=1e-14)


def test_an_error_of_the_user_s_is_the_user_s(monkeypatch):
    monkeypatch.setattr(_direct, "LEAST", 1)
    model, data = deep(nn.Tanh())

    def failing(model, data):
        if math.isnan(float(model[0].weight.detach().sum())):
            raise RuntimeError("no such thing")
        return squared(model, data)

    objective = objective_of(model, failing, data)
    theta = objective.layout.current()
    with pytest.raises(RuntimeError, match="no such thing"):
        objective.add_grad(torch.zeros_like(theta), theta * math.nan, 1.0, "flow")


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_model_that_is_one_matrix_takes_eight_copies_at_most(activation, monkeypatch):
    monkeypatch.setattr(memory, "_DEPTH", 1)
    monkeypatch.setitem(memory.WIDTH, "tiny", 1600)
    monkeypatch.setitem(memory._STEPS, "tiny", 3)
    monkeypatch.setattr(_blocks, "BLOCK", 1 << 15)  # as small beside 2,560,000 parameters
    peak, rest = memory.shadow_memory("tiny", activation)  # 2.56 million: low by default
    assert 6.0 < peak <= 8.0
    assert rest <= 7.6


def test_it_is_for_large_layers_only():
    assert _direct.LEAST == _blocks.BLOCK
