"""Low storage: eight copies of the parameters at most, and the numbers of full storage."""

import sys

import pytest
import torch
from cases import F64, network, objective_of, seeded, squared
from loops import mlp
from pages import ROOT
from test_resume import interrupted, same_records, uninterrupted
from torch import nn

import torch_gfshadow as gfs
from torch_gfshadow import _blocks
from torch_gfshadow._blocks import combined, dot_of, length_of
from torch_gfshadow.flows import GradientFlow
from torch_gfshadow.shadow import FlowField
from torch_gfshadow.solvers import RKC2, Adams2, Auto
from torch_gfshadow.solvers.base import Node
from torch_gfshadow.solvers.low_bar import LowStorageBar
from torch_gfshadow.solvers.rkc import STRONG, first_order, stages_for

sys.path.insert(0, str(ROOT))

from benchmarks import memory

LOW, FULL = RKC2(storage="low"), RKC2(storage="full")
KINKS, KINKS_FULL = Adams2(storage="low"), Adams2(storage="full")
LEAN = pytest.mark.parametrize(
    ("activation", "solver"), [(nn.Tanh, LOW), (nn.ReLU, KINKS)], ids=["rkc2", "adams2"]
)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_ten_million_parameters_take_eight_copies_at_most(activation, monkeypatch):
    monkeypatch.setitem(memory._STEPS, "quick", 3)  # the first audit on the way comes before it
    peak, rest = memory.shadow_memory("quick", activation)
    assert peak <= 8.0
    assert rest <= 7.6
    assert peak > 6.0  # it has been measured


@LEAN
def test_many_steps_with_audits_and_carried_errors_take_no_more(activation, solver, monkeypatch):
    monkeypatch.setitem(memory.WIDTH, "tiny", 256)
    monkeypatch.setitem(memory._STEPS, "tiny", 17 if solver is LOW else 7)
    monkeypatch.setattr(_blocks, "BLOCK", 8192)  # as small beside 655,360 parameters
    peak, rest = memory.shadow_memory("tiny", activation, solver=solver)
    assert peak <= 8.0
    assert rest <= 7.6


def decayed(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.01)


def grouped(model):
    even, odd = list(model.parameters())[::2], list(model.parameters())[1::2]
    groups = [{"params": even, "weight_decay": 1e-3}, {"params": odd, "lr": 0.02}]
    return torch.optim.SGD(groups, lr=0.05, momentum=0.5, nesterov=True)


def heavy(model):
    return torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-4)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("optimizer", "every"),
    [
        (heavy, 1),
        pytest.param(grouped, 1, marks=SLOW),
        pytest.param(decayed, 1, marks=SLOW),
        pytest.param(heavy, 3, marks=SLOW),
    ],
)
def test_decay_groups_and_momentum_take_no_more(optimizer, every, monkeypatch):
    monkeypatch.setitem(memory.WIDTH, "tiny", 256)
    monkeypatch.setitem(memory._STEPS, "tiny", 4)
    monkeypatch.setattr(_blocks, "BLOCK", 8192)
    peak, _ = memory.shadow_memory("tiny", nn.ReLU, optimizer, solver=KINKS, every=every)
    assert peak <= (8.0 if every == 1 else 9.0)  # the parameters at the last record


def run(solver, activation=nn.Tanh, steps=60, lr=0.2, dtype=torch.float32, bias=True, **options):
    model, batch = network(activation, dtype=dtype, bias=bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, **options.pop("sgd", {}))
    options = {"probes": [], "bounds": [], "on_error": "raise"} | options
    shadow = gfs.attach(optimizer, model, squared, data=batch, solver=solver, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        squared(model, batch).backward()
        optimizer.step()
    shadow.detach()
    return shadow


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize("activation", [nn.Tanh])
def test_low_and_full_storage_agree_within_their_bars(activation, every, decay):
    options = {"activation": activation, "every": every, "sgd": {"weight_decay": decay}}
    low, full = run(LOW, **options), run(FULL, **options)
    assert [r.step for r in low.records] == [r.step for r in full.records]
    for a, b in zip(low.records[1:], full.records[1:], strict=True):
        # both follow the same float32 field; each is off by its own bar at most
        assert abs(a.discrepancy - b.discrepancy) <= a.solver_error + b.solver_error
        assert a.solver_error <= 0.5 * a.discrepancy
        assert a.shadow_loss == pytest.approx(b.shadow_loss, rel=1e-3)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
        assert a.distance_from_init == pytest.approx(b.distance_from_init, rel=1e-6)
        assert a.extras["run"]["path_length"] == pytest.approx(
            b.extras["run"]["path_length"], rel=1e-5
        )
        if b.local_defect is not None:
            assert a.local_defect == pytest.approx(b.local_defect, rel=1e-4)
            for name in ("gradient_cosine", "secant_curvature"):
                left, right = a.extras["run"][name], b.extras["run"][name]
                assert left == pytest.approx(right, rel=1e-2, abs=1e-3)
    assert {r.audit for r in low.records[1:]} == {"match"}


@pytest.mark.parametrize("lr", [0.05, 0.4])
def test_the_bar_holds_against_a_float64_reference(lr):
    low = run(LOW, lr=lr, dtype=F64)
    exact = run(gfs.solvers.Dopri8(rtol=1e-11, max_burst=None), lr=lr, dtype=F64)
    held = [
        abs(a.discrepancy - b.discrepancy) <= a.solver_error
        for a, b in zip(low.records[1:], exact.records[1:], strict=True)
    ]
    assert sum(held) >= 0.95 * len(held)


@pytest.mark.parametrize("at", [0, 1, 2, 8, 9, 21])
@pytest.mark.parametrize("solver", [LOW, KINKS], ids=["rkc2", "adams2"])
def test_a_resumed_run_in_low_storage_is_the_same_bit_for_bit(solver, at):
    options = {"solver": solver, "probes": []}
    whole = uninterrupted(mlp, 30, **options)
    assert same_records(interrupted(mlp, at, 30, **options).records, whole.records)


def test_what_it_adds_in_place_is_the_gradient():
    for activation, loss in ((nn.Tanh, squared), (nn.ReLU, squared)):
        model, data = network(activation, dtype=torch.float32)
        halves = [tuple(t[:12] for t in data), tuple(t[12:] for t in data)]
        for given in (data, halves):
            objective = objective_of(model, loss, given)
            theta = objective.layout.current()
            value, grad = objective.loss_and_grad(theta, "flow")
            start = torch.ones_like(theta)
            before = objective.ledger.grads["flow"]
            assert objective.add_grad(start, theta, -0.5, "flow") == value
            torch.testing.assert_close(start, 1.0 - 0.5 * grad, rtol=1e-6, atol=1e-7)
            assert objective.ledger.grads["flow"] == before + 1
            here = torch.zeros_like(theta)
            objective.add_grad(here, None, 1.0, "flow")
            torch.testing.assert_close(here, grad, rtol=1e-6, atol=1e-8)
            assert all(p.grad is None for p in model.parameters())


class InPlace(torch.optim.SGD):
    """An optimizer that writes to the gradients it is given."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(group["lr"])
                p.data.sub_(p.grad)


def test_gradients_that_the_optimizer_overwrites_are_copied():
    model, batch = network(nn.Tanh)
    optimizer = InPlace(model.parameters(), lr=0.1)
    options = {"solver": LOW, "probes": [], "on_error": "raise", "flow": "gradient_flow"}
    shadow = gfs.attach(optimizer, model, squared, data=batch, **options)
    norms = []
    for _ in range(6):
        optimizer.zero_grad()
        squared(model, batch).backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).clone())
        optimizer.step()
    shadow.detach()
    defects = [r.local_defect for r in shadow.records[1:]]
    assert defects[1] is None  # the first was lost; from then on they are copied
    for k in range(2, 6):
        assert defects[k] == pytest.approx(float((norms[k] - norms[k - 1]).norm()), rel=1e-9)


SGD = torch.optim.SGD
WAYS = {
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "nesterov with decay": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "groups": lambda p: SGD(
        [{"params": list(p)[::2], "weight_decay": 0.3}, {"params": list(p)[1::2]}], lr=0.05
    ),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_way_of_each_step_is_known_without_another_vector(name):
    model, batch = network(nn.Tanh)
    params = list(model.parameters())
    optimizer = WAYS[name](iter(params) if name == "Adam" else params)
    shadow = gfs.attach(optimizer, model, squared, data=batch, solver=LOW, probes=[])
    points, grads = [], []
    for _ in range(5):
        optimizer.zero_grad()
        squared(model, batch).backward()
        points.append(torch.cat([p.detach().flatten() for p in params]))
        grads.append(torch.cat([p.grad.flatten() for p in params]).clone())
        optimizer.step()
    used = shadow._tracker._used
    assert (used._moved is None) == (name != "Adam")
    shadow.detach()
    for k in range(1, 5):
        moved, bend = points[k] - points[k - 1], grads[k] - grads[k - 1]
        curvature = float(bend @ moved / (moved @ moved))
        seen = shadow.records[k + 1].extras["run"]["secant_curvature"]
        # Adam's steps are no such sum: they are kept with three digits
        assert seen == pytest.approx(curvature, rel=1e-2 if name == "Adam" else 1e-6)


def test_auto_is_low_beyond_two_million_parameters():
    flow = GradientFlow()
    for activation in (nn.Tanh, nn.ReLU):
        model, data = network(activation)
        objective = objective_of(model, squared, data)
        flow.configure([{"params": objective.layout.params}], objective.layout)
        field = FlowField(flow, objective, "flow")
        for config in (Auto(), RKC2(), Adams2()):
            assert config.is_low(field, 3_000_000)
            assert not config.is_low(field, 1_000_000)
    with pytest.raises(ValueError, match="storage must be 'auto', 'low' or 'full', got 'small'"):
        RKC2(storage="small")


def test_resync_sets_the_discrepancy_to_zero():
    low = run(LOW, resync_every=10, steps=21)
    assert low.records[11].discrepancy < 0.2 * low.records[10].discrepancy


def test_the_first_order_carrier_is_consistent_and_damped():
    for s in (2, 5, 20, 80):
        mu, nu, mu_t = first_order(s, STRONG)

        def polynomial(z, s=s, mu=mu, nu=nu, mu_t=mu_t):
            before, now = 1.0, 1.0 + mu_t[1] * z
            for j in range(2, s + 1):
                before, now = now, mu[j] * now + nu[j] * before + mu_t[j] * z * now
            return now

        assert polynomial(0.0) == pytest.approx(1.0, rel=1e-12)
        assert (polynomial(1e-6) - polynomial(-1e-6)) / 2e-6 == pytest.approx(1.0, rel=1e-5)
        reach = 0.4 * (s * s - 1)
        assert stages_for(reach, STRONG) <= s
        assert max(abs(polynomial(-0.01 * k * reach)) for k in range(101)) <= 1.0 + 1e-12
        assert abs(polynomial(-reach)) < 0.5


@pytest.mark.parametrize("rate", [0.5, -0.3])
def test_the_bar_in_half_precision_follows_a_linear_flow(rate):
    def field(y):
        return -rate * y

    state = torch.ones(400, dtype=F64)

    def node(t):
        y = state * torch.exp(torch.tensor(-rate * t, dtype=F64))
        return Node(t, y, field(y))

    bar, exact, h = LowStorageBar(field, node(0.0)), 0.0, 0.1
    for k in range(1, 200):
        bar.catch_up(node(h * (k - 1)))
        exact = exact * float(torch.exp(torch.tensor(-rate * h))) + 1e-6 * 20.0
        terms = [(1e-6 * torch.ones(400, dtype=F64), 1.0)]
        bar.add_terms(terms, node(h * k), h * abs(rate), 1e-3, 100)
    assert exact <= bar.value <= 6.0 * exact


def test_sums_by_block_are_those_of_whole_vectors():
    a, b = (torch.randn(300_000, generator=seeded(i)) for i in range(2))
    terms = [(a, 2.0), (b, -1.0)]
    whole = 2.0 * a.double() - b.double()
    assert torch.equal(combined(terms), whole)
    assert length_of(terms) == pytest.approx(float(whole.norm()), rel=1e-12)
    assert dot_of(terms, [(b, 1.0)]) == pytest.approx(float(whole @ b.double()), rel=1e-10)
