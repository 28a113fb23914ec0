"""The shadow that lives on the run's own gradients: against closed forms, handovers, resumption."""

import math

import pytest
import torch
from torch import nn

import torch_gfshadow as gfs

F64 = torch.float64
CURVATURES = torch.tensor([0.02, 0.3, 1.0, 3.0, 8.0], dtype=F64)
START = torch.tensor([1.0, -2.0, 1.5, 0.7, -1.0], dtype=F64)


class Point(nn.Module):
    def __init__(self, dtype=F64):
        super().__init__()
        self.x = nn.Parameter(START.to(dtype, copy=True))

    def forward(self):
        return self.x


def quadratic(model, curvatures):
    return 0.5 * (curvatures * model() ** 2).sum()


def followed(steps, lr=0.01, dtype=F64, schedule=None, every=5, decay=0.0, after=None, **options):
    """Train on the quadratic; return shadow, optimizer, model."""
    model = Point(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay)
    plan = schedule(optimizer) if schedule else None
    data = CURVATURES.to(dtype)
    shadow = gfs.attach(
        optimizer, model, quadratic, data=data, every=every, probes=(), on_error="raise", **options
    )
    for k in range(steps):
        optimizer.zero_grad()
        quadratic(model, data).backward()
        if after is not None:
            after(k, optimizer, model, shadow)
        optimizer.step()
        if plan is not None:
            plan.step()
    return shadow, optimizer, model


def exact(time, decay=0.0):
    return START * torch.exp(-(CURVATURES + decay) * time)


def fed(shadow):
    return [r for r in shadow.records if r.solver == "auto:defect"]


def missed(shadow, decay=0.0):
    """Error of θ̃ at the run's clock, and the bar."""
    state = shadow._tracker.shadow.state(shadow._tracker.clock.time)
    error = float((state - exact(shadow._tracker.clock.time, decay)).norm())
    return error, shadow.records[-1].solver_error


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("schedule", [None, cosine], ids=["constant", "cosine"])
def test_the_bar_covers_the_closed_form_at_every_record(decay, schedule):
    errors, bars = [], []

    def look(k, optimizer, model, shadow):
        if k and k % 5 == 0:
            error, bar = missed(shadow, decay)
            errors.append(error)
            bars.append(bar)

    shadow, _, _ = followed(300, decay=decay, schedule=schedule, after=look)
    assert len(fed(shadow)) > 40
    covered = [error <= bar for error, bar in zip(errors, bars, strict=True)]
    assert sum(covered) >= 0.95 * len(covered)
    last = shadow.records[-1]
    assert last.solver_error <= 0.12 * last.discrepancy
    assert last.shadow_loss == pytest.approx(
        float(0.5 * (CURVATURES * exact(last.time, decay) ** 2).sum()), rel=1e-3, abs=1e-9
    )


def test_it_takes_less_than_a_solver_of_its_own():
    costs = {}
    for solver in ("auto", "dopri5"):
        shadow, _, _ = followed(2000, solver=solver, audit=False, every=50)
        by = shadow.summary()["by_purpose"]["grads"]
        costs[solver] = by.get("flow", 0) + by.get("error", 0)
        assert missed(shadow)[0] <= missed(shadow)[1]
    assert costs["auto"] < 0.6 * costs["dopri5"]


def test_the_rounding_of_a_float32_run_is_part_of_the_discrepancy_and_not_of_the_shadow():
    shadow, _, model = followed(4000, lr=0.002, dtype=torch.float32, every=100)
    assert shadow.records[-1].solver == "auto:defect"
    error, bar = missed(shadow)
    assert error <= bar
    theta = model.x.detach().to(F64)
    true = float((theta - exact(shadow.records[-1].time)).norm())
    assert shadow.records[-1].discrepancy == pytest.approx(true, abs=bar)


def test_a_run_that_turns_at_every_step_is_followed_by_a_solver_of_its_own():
    shadow, _, _ = followed(80, lr=0.23)  # ηλ = 1.84
    early = [r for r in shadow.records if r.step <= 40]
    assert not any(r.solver == "auto:defect" for r in early)


def test_gradients_that_cannot_be_read_send_it_on_alone_and_the_bar_holds():
    def hide(k, optimizer, model, shadow):
        if k == 120:
            model.x.grad = model.x.grad.to_sparse()

    shadow, _, _ = followed(150, after=hide)
    assert shadow.records[23].solver == "auto:defect"
    assert shadow.records[25].solver != "auto:defect"
    error, bar = missed(shadow)
    assert error <= bar
    assert all(r.status in ("ok", "unresolved") for r in shadow.records)


def test_a_step_that_raises_is_not_counted():
    class Broken(torch.optim.SGD):
        fails = False

        def step(self, closure=None):
            if self.fails:
                raise RuntimeError("out of memory")
            return super().step(closure)

    states = []
    for fails in (False, True):
        model = Point()
        optimizer = Broken(model.parameters(), lr=0.01)
        options = {"data": CURVATURES, "every": 10, "probes": (), "on_error": "raise"}
        with gfs.attach(optimizer, model, quadratic, **options) as shadow:
            for k in range(100):
                optimizer.zero_grad()
                quadratic(model, CURVATURES).backward()
                if fails and k in (57, 58):
                    optimizer.fails = True
                    with pytest.raises(RuntimeError, match="out of memory"):
                        optimizer.step()
                    optimizer.fails = False
                optimizer.step()
            assert shadow.records[-1].solver == "auto:defect"
            states.append(shadow._tracker.shadow.state(shadow.records[-1].time))
    assert torch.allclose(states[0], states[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("stop", [8, 12, 13, 47, 64, 131])
def test_a_resumed_run_gives_the_same_records(stop):
    whole, _, _ = followed(160)
    kept = {}

    def save(k, optimizer, model, shadow):
        if k == stop:
            kept["shadow"] = shadow.state_dict()
            kept["model"] = {n: v.clone() for n, v in model.state_dict().items()}

    followed(stop + 1, after=save)
    model = Point()
    model.load_state_dict(kept["model"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"data": CURVATURES, "every": 5, "probes": (), "on_error": "raise"}
    with gfs.attach(optimizer, model, quadratic, **options) as shadow:
        shadow.load_state_dict(kept["shadow"])
        for _ in range(stop, 160):
            optimizer.zero_grad()
            quadratic(model, CURVATURES).backward()
            optimizer.step()
        again = {r.step: r for r in shadow.records if r.step > stop}
    expected = {r.step: r for r in whole.records if r.step > stop}
    assert again.keys() == expected.keys()
    for step, record in expected.items():
        for name in ("discrepancy", "solver_error", "shadow_loss", "solver", "n_grad_evals"):
            assert getattr(again[step], name) == getattr(record, name), (step, name)


def test_along_a_direction_of_negative_curvature_the_bar_grows_with_the_error():
    covered = []
    curvatures = torch.tensor([1.0, 2.0, -0.5], dtype=F64)
    start = torch.tensor([1.0, 1.0, 1e-3], dtype=F64)
    model = Point()
    model.x.data = start.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    options = {"data": curvatures, "every": 10, "probes": (), "on_error": "raise"}
    with gfs.attach(optimizer, model, quadratic, **options) as shadow:
        for _ in range(600):
            optimizer.zero_grad()
            quadratic(model, curvatures).backward()
            optimizer.step()
            last = shadow.records[-1]
            if last.step == shadow._tracker.clock.step and last.step:
                flow = start * torch.exp(-curvatures * last.time)
                error = float((shadow._tracker.shadow.state(last.time) - flow).norm())
                covered.append(error <= last.solver_error)
    assert sum(covered) >= 0.95 * len(covered)
    assert len(fed(shadow)) > 20
    assert math.isfinite(shadow.records[-1].discrepancy)
