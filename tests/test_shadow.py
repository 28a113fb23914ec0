import math

import pytest
import torch
from cases import F64, Point, beside, diagonal, network, objective_of, quartic, squared
from torch import nn

import torch_gfshadow as gfs
from torch_gfshadow.solvers import Auto, Bosh3, Dopri5

H = torch.tensor([0.2, 0.7, 1.5, 3.0], dtype=F64)
START = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=F64)


class Counted:
    """An objective that counts backward passes through it."""

    def __init__(self, fn):
        self.fn, self.forwards, self.backwards = fn, 0, 0

    def __call__(self, model, batch):
        self.forwards += 1
        loss = self.fn(model, batch)
        if loss.requires_grad:
            loss.register_hook(self.count)
        return loss

    def count(self, grad):
        self.backwards += 1


def trained(model, fn, data, steps, lr, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    shadow = gfs.attach(
        optimizer, model, fn, data=data, **{"probes": (), "on_error": "raise"} | options
    )
    return optimizer, shadow, lambda n=steps: step(model, optimizer, fn, data, n)


def step(model, optimizer, fn, data, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        fn(model, data).backward()
        optimizer.step()


# -- control ----------------------------------------------------------------------------------


def test_resync_sets_the_shadow_to_the_iterate():
    _, shadow, go = trained(Point(START), diagonal, H, 30, 0.05)
    go()
    assert shadow.records[-1].discrepancy > 1e-3
    shadow.resync()
    flow = shadow._tracker.shadow
    assert flow.error == 0.0
    theta = shadow._parts.watched.layout.current(F64)
    assert torch.equal(flow.state(shadow._tracker.clock.time), theta)
    go(1)
    one_step = 0.5 * 0.05**2 * float((H**2 * theta).norm())
    assert shadow.records[-1].discrepancy == pytest.approx(one_step, rel=0.15)


def test_resync_every_keeps_the_discrepancy_to_a_window():
    _, shadow, go = trained(Point(START), diagonal, H, 30, 0.05, resync_every=10)
    go()
    first, second = shadow.records[1], shadow.records[11]
    assert second.discrepancy < shadow.records[10].discrepancy / 3
    factor = float((H**2 * START * (1 - 0.05 * H) ** 10).norm() / (H**2 * START).norm())
    assert second.discrepancy == pytest.approx(factor * first.discrepancy, rel=0.1)


def test_a_pause_writes_nothing_and_the_clock_goes_on():
    _, shadow, go = trained(Point(START), diagonal, H, 10, 0.05)
    go()
    with shadow.paused():
        go(20)
    assert shadow.records[-1].step == 10
    go(1)
    assert shadow.records[-1].step == 31
    assert shadow.records[-1].time == pytest.approx(31 * 0.05)
    theta = START * (1 - 0.05 * H) ** 31
    exact = float((theta - START * torch.exp(-H * 31 * 0.05)).norm())
    assert shadow.records[-1].discrepancy == pytest.approx(exact, rel=0.2)


# -- a flow that leaves -----------------------------------------------------------------------

FATAL = {"blow_up", "stiff", "non_finite", "truncated"}


@pytest.mark.parametrize("solver", [Auto(), Bosh3(), Dopri5(), Dopri5(rtol=1e-8)])
def test_a_flow_that_leaves_in_finite_time_is_a_status_and_training_goes_on(solver):
    model = Point([1.0])
    sign = torch.tensor(-1.0, dtype=F64)
    _, shadow, go = trained(model, quartic, sign, 1, 0.05, solver=solver, on_error="disable")
    for _ in range(14):
        go(1)
    last = shadow.records[-1]
    assert last.step == 14
    assert last.time == pytest.approx(0.7)
    assert last.status.value in FATAL
    assert last.discrepancy is None
    assert last.status.sentence in last.status_detail
    assert "t = " in last.status_detail
    assert shadow.errors == []
    # before it leaves, at t = 1/2, it is followed
    for r in shadow.records[1:9]:
        flow = 1.0 / math.sqrt(1.0 - 2.0 * r.time)
        theta = 1.0
        for _ in range(r.step):
            theta += 0.05 * theta**3
        assert r.status == "ok"
        assert r.discrepancy == pytest.approx(abs(flow - theta), rel=0.25)
    # training was that of plain gradient descent
    theta = torch.ones(1, dtype=F64)
    for _ in range(14):
        theta = theta + 0.05 * theta**3
    torch.testing.assert_close(model.theta.detach(), theta, rtol=1e-12, atol=0)


def test_after_it_left_a_resync_starts_the_shadow_anew():
    model = Point([1.0])
    sign = torch.tensor(-1.0, dtype=F64)
    _, shadow, go = trained(model, quartic, sign, 11, 0.05, on_error="disable")
    go()
    assert shadow.status.value in FATAL
    with torch.no_grad():
        model.theta.fill_(0.5)
    shadow.resync()
    go(1)
    assert shadow.records[-1].discrepancy is not None


def test_a_spent_budget_is_a_status_that_names_the_numbers():
    _, shadow, go = trained(Point(START), diagonal, H, 60, 0.2, solver=Auto(max_evals=0.01))
    go()
    record = next(r for r in shadow.records if r.status == "truncated")
    assert "evaluations did not bring auto:dopri5 to t =" in record.status_detail
    assert "max_evals" in record.status_detail
    assert record.discrepancy is None
    flow = shadow._parts.session.ledger.grads["flow"]
    assert flow < 10
    assert shadow.status == "truncated"


def test_a_solver_too_loose_for_the_discrepancy_says_unresolved():
    loose = Bosh3(rtol=0.3, atol=0.3)
    _, shadow, go = trained(Point(START), diagonal, H, 2000, 1e-3, solver=loose, every=20)
    go()
    late = shadow.records[20:]
    unresolved = [r for r in late if r.status == "unresolved"]
    assert len(unresolved) > 0.2 * len(late)
    assert all(r.solver_error > r.discrepancy for r in unresolved)
    assert "resolution" in unresolved[0].status_detail


# -- cost -------------------------------------------------------------------------------------


def test_every_gradient_that_is_caused_is_counted():
    model, data = network(nn.Tanh)
    fn = Counted(squared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gfs.attach(
        optimizer, model, fn, data=data, probes=(), audit=False, on_error="raise"
    ) as shadow:
        backwards, counted = fn.backwards, shadow.records[-1].n_grad_evals
        step(model, optimizer, fn, data, 80)
        ours = fn.backwards - backwards - 80
        assert shadow.records[-1].n_grad_evals - counted == ours
        summary = shadow.summary()
    assert summary["n_grad_evals"] == sum(summary["by_purpose"]["grads"].values())
    numbers = [r.n_grad_evals for r in shadow.records]
    assert numbers == sorted(numbers)
    assert summary["grad_evals_per_step"] < 1.3


def test_a_smooth_run_costs_less_the_smaller_the_step():
    costs = []
    for lr in (0.04, 0.01):
        model, data = network(nn.Tanh, seed=1)
        f = objective_of(model, squared, data)
        beside(f, lr, round(8.0 / lr))
        costs.append(f.ledger.grads.total() / round(8.0 / lr))
    assert costs[1] < costs[0] < 2.5


def test_long_stretches_between_records_cost_no_restart():
    counts = []
    for every in (1, 10):
        _, shadow, go = trained(Point(START), diagonal, H, 100, 0.02, every=every, audit=False)
        go()
        counts.append(shadow._parts.session.ledger.grads["flow"])
    assert counts[1] < 1.5 * counts[0]


# -- resolution -------------------------------------------------------------------------------


def test_the_default_resolution_is_kept_on_a_smooth_problem():
    model, data = network(nn.Tanh)
    _, shadow, go = trained(model, squared, data, 200, 0.05, resolution=0.1)
    go()
    share = [r.solver_error / r.discrepancy for r in shadow.records[1:]]
    assert sum(s <= 0.1 for s in share) / len(share) > 0.9
    assert all(r.status == "ok" for r in shadow.records)


def test_a_finer_resolution_gives_a_smaller_bar_for_more_evaluations():
    bars, costs = [], []
    for resolution in (0.3, 0.03):
        model, data = network(nn.Tanh)
        f = objective_of(model, squared, data)
        run = beside(f, 0.05, 100, resolution=resolution)
        bars.append(run.bars[-1])
        costs.append(f.ledger.grads["flow"])
    assert bars[1] < 0.3 * bars[0]
    assert costs[1] > costs[0]


# -- data -------------------------------------------------------------------------------------


def test_however_the_data_come_the_records_are_those_of_the_full_batch():
    def records(wrap):
        model, (x, y) = network(nn.Tanh, samples=30)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with gfs.attach(
            optimizer, model, squared, data=wrap(x, y), probes=(), on_error="raise"
        ) as shadow:
            step(model, optimizer, squared, (x, y), 40)
        assert shadow.records[-1].audit == "match"
        return shadow.records

    dataset = torch.utils.data.TensorDataset
    loader = torch.utils.data.DataLoader
    full = records(lambda x, y: (x, y))
    for wrap in (
        dataset,
        lambda x, y: loader(dataset(x, y), batch_size=7),
        lambda x, y: lambda: (x, y),
        lambda x, y: [(x[:11], y[:11]), (x[11:], y[11:])],
    ):
        for a, b in zip(records(wrap), full, strict=True):
            assert a.time == b.time
            assert a.loss is None or a.loss == pytest.approx(b.loss, rel=1e-12)
            # steps of the solver differ in their last digits, and so then its own small errors
            assert a.discrepancy == pytest.approx(b.discrepancy, rel=1e-6, abs=1e-13)
            assert a.solver_error == pytest.approx(b.solver_error, rel=1e-4, abs=1e-13)
            assert a.n_grad_evals == b.n_grad_evals


def test_a_run_that_diverges_is_a_status_and_not_an_error():
    theta = nn.Parameter(torch.ones(2, dtype=torch.float64))
    model = nn.ParameterList([theta])
    optimizer = torch.optim.SGD([theta], lr=1e200)

    def cubic(m, _):
        return (m[0] ** 4).sum()

    shadow = gfs.attach(optimizer, model, cubic, data=torch.zeros(1), on_error="raise")
    for _ in range(4):
        optimizer.zero_grad()
        cubic(model, None).backward()
        optimizer.step()
    last = shadow.records[-1]
    assert not torch.isfinite(theta).all()
    assert last.status == "non_finite"
    assert "own parameters" in last.status_detail
    assert last.discrepancy is None
    assert len(shadow.records) == 5


def test_theta_is_where_the_shadow_stands():
    model = Point(START)
    _, shadow, go = trained(model, diagonal, H, 10, 0.05)
    assert shadow.theta()["theta"] == pytest.approx(START)
    go()
    here = shadow.theta()["theta"]
    exact = torch.exp(-0.5 * H) * START
    assert float((here - exact).norm()) <= shadow.records[-1].solver_error < 0.01
    gap = float((model.theta.detach() - here).norm())
    assert gap == pytest.approx(shadow.records[-1].discrepancy, rel=1e-12)
    here.zero_()  # a copy
    assert shadow.theta()["theta"].norm() > 1
    heavy = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with gfs.attach(
        heavy, model, diagonal, data=H, flow="heavy_ball", probes=(), on_error="raise"
    ) as second:
        step(model, heavy, diagonal, H, 5)
        gap = float((model.theta.detach() - second.theta()["theta"]).norm())
        assert gap == pytest.approx(second.records[-1].discrepancy, rel=1e-12)
    passive = gfs.attach(torch.optim.Adam(model.parameters()), on_error="raise")
    assert passive.theta() is None
