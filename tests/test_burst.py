"""No single step costs more than it may, however stiff or divergent the run; values come back."""

import pytest
import torch
from cases import seeded
from test_shadow import diagonal
from torch import nn

import torch_gfshadow as gfs
from torch_gfshadow.rest import Rest
from torch_gfshadow.solvers import RKC2, Auto
from torch_gfshadow.solvers.rkc2 import MAX_STAGES
from torch_gfshadow.status import Status

LIMIT = 64 + MAX_STAGES + 24
H = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def network(activation):
    make = seeded(0)
    model = nn.Sequential(nn.Linear(30, 20), activation(), nn.Linear(20, 10))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=make) / 5)
    x = torch.randn(64, 30, generator=make)
    return model, (x, torch.randint(10, (64,), generator=make))


def train(model, data, lr, steps, objective=cross_entropy, edit=lambda k, o: None, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    options = {"probes": (), "bounds": (), "audit": False, "on_error": "raise"} | options
    shadow = gfs.attach(optimizer, model, objective, data=data, **options)
    costs, ledger = [], shadow._parts.session.ledger
    for k in range(steps):
        edit(k, optimizer)
        optimizer.zero_grad()
        objective(model, data).backward()
        before = ledger.n_grads
        optimizer.step()
        costs.append(ledger.n_grads - before)
    return shadow, costs


@pytest.mark.parametrize("lr", [30.0, 1e3, 1e4])
@pytest.mark.parametrize("activation", [nn.Identity, nn.Tanh, nn.ReLU])
def test_no_step_of_a_run_far_beyond_the_edge_costs_more_than_the_cap(activation, lr):
    model, data = network(activation)
    shadow, costs = train(model, data, lr, 60)
    assert max(costs) <= LIMIT
    # resting between attempts, such a run costs little on the whole
    assert sum(costs) <= 60 * 30
    for record in shadow.records:
        lost = record.status in ("behind", "truncated", "stiff", "non_finite", "blow_up")
        assert lost == (record.discrepancy is None)


@pytest.mark.parametrize("activation", [nn.Identity, nn.Tanh, nn.ReLU])
def test_an_ordinary_run_is_not_touched(activation):
    runs = []
    for burst in (64.0, None):
        model, data = network(activation)
        shadow, costs = train(model, data, 0.2, 30, solver=Auto(max_burst=burst))
        runs.append(([r.discrepancy for r in shadow.records], costs))
    assert runs[0] == runs[1]


class Point(nn.Module):
    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta)


def test_a_shadow_that_is_behind_catches_up_with_the_same_flow():
    start = torch.tensor([1.0, -2.0, 1.5], dtype=torch.float64)
    got, costs = train(
        Point(start.clone()), H, 0.3, 60, objective=diagonal, solver=Auto(max_burst=3.0)
    )
    states = [r.status.value for r in got.records]
    assert "behind" in states
    assert all(r.discrepancy is None for r in got.records if r.status == "behind")
    assert max(costs) <= 3 + 6 + 24 + 4
    last = got.records[-1]
    assert last.status == "ok"
    exact = start * torch.exp(-H * last.time)
    reached = got._tracker.shadow.state(last.time)
    assert float((reached - exact).norm()) <= last.solver_error
    assert got.summary()["resyncs"] == 0


def test_a_run_that_calms_down_has_values_again():
    def calm(k, optimizer):
        optimizer.param_groups[0]["lr"] = 1e4 if k < 5 else 0.1

    model, data = network(nn.Tanh)
    shadow, costs = train(model, data, 1e4, 80, edit=calm)
    states = [r.status for r in shadow.records]
    assert states[1] in ("truncated", "stiff", "behind")
    assert states[-1] == "ok"
    assert max(costs) <= LIMIT
    assert shadow.summary()["resyncs"] >= 1


def test_rests_double_until_a_shadow_lives():
    rest, starts, step = Rest(), [], 0
    while step < 400:
        step += 1
        if rest.over(step, Status.TRUNCATED):
            starts.append(step)
            rest.begin(step)
    assert starts == [11, 32, 73, 154, 315]
    again = Rest()
    again.load_state_dict(rest.state_dict())
    assert again.state_dict() == rest.state_dict()
    rest.begin(400)
    assert not rest.over(450, Status.OK)
    assert not rest.over(1500, Status.STIFF)
    assert rest.over(1510, Status.STIFF)


def test_max_burst_is_checked_and_open_with_max_evals():
    with pytest.raises(ValueError, match="max_burst must be positive, got 0"):
        RKC2(max_burst=0)
    model, data = network(nn.Tanh)
    _, costs = train(model, data, 1e3, 1, solver=Auto(max_evals=None))
    assert max(costs) > LIMIT


def test_what_hides_behind_a_mismatch_is_said_where_there_is_no_value():
    model, data = network(nn.Tanh)
    half = data[0][:32], data[1][:32]
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
    shadow = gfs.attach(
        optimizer, model, cross_entropy, data=data, probes=(), solver=Auto(max_burst=2.0),
        on_error="raise",
    )  # fmt: skip
    for _ in range(4):
        optimizer.zero_grad()
        cross_entropy(model, half).backward()
        optimizer.step()
    rows = [r for r in shadow.records if r.status is Status.MISMATCH]
    missing = [r for r in rows if r.discrepancy is None]
    assert missing
    for row in missing:
        assert "cosine" in row.status_detail
        assert "And no discrepancy: " in row.status_detail
        assert any(s.sentence in row.status_detail for s in (Status.BEHIND, Status.TRUNCATED))
    assert all("And no" not in r.status_detail for r in rows if r.discrepancy is not None)
