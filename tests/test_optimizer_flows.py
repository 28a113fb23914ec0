"""Flows of optimizers with memory: closed forms on quadratics, and the order they are limits to."""

import math

import pytest
import torch
from torch import nn

import torch_gfshadow as gfs

F64 = torch.float64
H = torch.tensor([0.3, 1.0, 2.5], dtype=F64)
START = torch.tensor([1.0, -2.0, 1.5], dtype=F64)


class At(nn.Module):
    def __init__(self, theta=START):
        super().__init__()
        self.theta = nn.Parameter(theta.clone())


def quadratic(model, h):
    return 0.5 * (h * model.theta.square()).sum()


def run(make, steps, data=H, objective=quadratic, before=lambda k, o: None, **options):
    model = At()
    optimizer = make(model.parameters())
    options = {"probes": (), "audit": False, "on_error": "raise"} | options
    if options.get("mode") != "batch":
        options["data"] = data
    shadow = gfs.attach(optimizer, model, objective, **options)
    for k in range(steps):
        before(k, optimizer)
        optimizer.zero_grad()
        shadow.observe(data)
        objective(model, data).backward()
        optimizer.step()
    return shadow, model.theta.detach().clone()


def sgd(lr, mu=0.0, **options):
    return lambda params: torch.optim.SGD(params, lr=lr, momentum=mu, **options)


def place(shadow):
    flow, tracker = shadow._parts.flow, shadow._tracker
    return flow.position(tracker.shadow.state(tracker.clock.time))


def oscillator(lr, mu, steps, nesterov=False, decay=0.0):
    """θ of m·θ'' + (1 − μ)·θ' + lr·μ·λ·θ'·[nesterov] + λ·θ = 0 after s = steps·lr, exactly."""
    out = []
    for h, start in zip((H + decay).tolist(), START.tolist(), strict=True):
        m = lr * (1 + mu) / 2
        drag = 1 - mu + (lr * mu * h if nesterov else 0.0)
        # θ'(0) of a start at rest; see HeavyBall.lift
        speed = -h * start * (1 + 2 * mu if nesterov else 1) / (1 + mu)
        system = torch.tensor([[0.0, 1.0], [-h / m, -drag / m]], dtype=F64)
        moved = torch.linalg.matrix_exp(steps * lr * system)
        out.append(moved @ torch.tensor([start, speed], dtype=F64))
    return torch.stack(out)[:, 0]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_the_second_order_system_is_the_damped_oscillator(nesterov, decay):
    make = sgd(0.05, 0.9, nesterov=nesterov, weight_decay=decay)
    shadow, theta = run(make, 80, flow="heavy_ball", resolution=0.01)
    exact = oscillator(0.05, 0.9, 80, nesterov, decay)
    last = shadow.records[-1]
    assert last.time == pytest.approx(80 * 0.05 / 0.1)
    assert float((place(shadow) - exact).norm()) <= last.solver_error
    assert last.discrepancy == pytest.approx(float((theta - exact).norm()), rel=0.02)


def order(make_at, rates, horizon, **options):
    logs = []
    for lr in rates:
        shadow, _ = run(make_at(lr), round(horizon / lr), **options)
        last = shadow.records[-1]
        assert last.solver_error < 0.5 * last.discrepancy
        logs.append((math.log(lr), math.log(last.discrepancy)))
    (x0, y0), (x1, y1) = logs[0], logs[-1]
    return (y1 - y0) / (x1 - x0)


RATES = (0.02, 0.01, 0.005)


def test_orders_of_the_limits_of_momentum():
    for nesterov in (False, True):

        def at(lr, nesterov=nesterov):
            return sgd(lr, 0.5, nesterov=nesterov)

        # from rest, the first-order limit is O(lr) off and the second-order system O(lr²)
        assert order(at, (0.005, 0.0025), 1.0) == pytest.approx(1.0, abs=0.15)
        assert order(at, RATES, 1.0, flow="heavy_ball", resolution=0.02) > 1.7


def test_the_first_order_limit_is_gradient_flow_on_a_clock_of_its_own():
    shadow, _ = run(sgd(0.01, 0.9, dampening=0.5), 100, resolution=0.01)
    last = shadow.records[-1]
    assert last.flow == "momentum_flow"
    assert last.time == pytest.approx(100 * 0.01 * 0.5 / 0.1)
    exact = START * torch.exp(-H * last.time)
    assert float((shadow._tracker.shadow.state(last.time) - exact).norm()) <= last.solver_error


def test_in_the_middle_of_a_run_the_velocity_is_taken_over():
    late = []
    for flow in ("heavy_ball", "momentum_flow"):
        shadow, _ = run(sgd(0.02, 0.9), 60, flow=flow, resync_every=30)
        late.append(max(r.discrepancy for r in shadow.records[31:45]))
    assert late[0] < 0.1 * late[1]


def test_a_change_of_rate_turns_the_flow_where_it_stands():
    def halve(k, optimizer):
        if k == 20:
            optimizer.param_groups[0]["lr"] = 0.01

    shadow, _ = run(sgd(0.02, 0.8), 60, flow="heavy_ball", before=halve, resolution=0.02)
    assert {r.status for r in shadow.records} == {"ok"}
    jump = shadow.records[21].discrepancy - shadow.records[20].discrepancy
    assert abs(jump) < 0.5 * shadow.records[20].discrepancy
    assert shadow.records[-1].time == pytest.approx((20 * 0.02 + 40 * 0.01) / 0.2)


def rosette(model, h):  # gradients that never vanish along the way
    return (h * torch.cosh(model.theta)).sum()


@pytest.mark.parametrize(
    ("make_at", "name"),
    [
        (lambda lr: lambda p: torch.optim.RMSprop(p, lr=lr, alpha=0.9), "rmsprop_flow"),
        (lambda lr: lambda p: torch.optim.Adam(p, lr=lr, betas=(0.8, 0.9)), "adam_flow"),
        (
            lambda lr: lambda p: torch.optim.AdamW(p, lr=lr, betas=(0.8, 0.9), weight_decay=0.3),
            "adam_flow",
        ),
        (
            lambda lr: lambda p: torch.optim.Adam(p, lr=lr, betas=(0.8, 0.9), weight_decay=0.3),
            "adam_flow",
        ),
    ],
    ids=["rmsprop", "adam", "adamw", "adam-l2"],
)
def test_adaptive_fields_are_followed_to_first_order(make_at, name):
    shadow, _ = run(make_at(0.01), 5, objective=rosette)
    assert shadow.records[-1].flow == name
    assert order(make_at, RATES, 0.4, objective=rosette, resolution=0.05) > 0.7


@pytest.mark.parametrize("make", [sgd(0.05, 0.9), lambda p: torch.optim.Adam(p, lr=0.01)])
def test_in_mode_batch_the_memory_goes_on_from_batch_to_batch(make):
    whole, _ = run(make, 25, resolution=0.01)
    pieces, _ = run(make, 25, resolution=0.01, mode="batch")
    assert pieces.records[-1].status == "ok"
    assert pieces.records[-1].discrepancy == pytest.approx(whole.records[-1].discrepancy, rel=0.05)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: torch.optim.Adam(p, amsgrad=True), "Adam with amsgrad"),
        (lambda p: torch.optim.RMSprop(p, centered=True), "RMSprop with centered"),
        (lambda p: torch.optim.RMSprop(p, momentum=0.5), "RMSprop with momentum"),
        (lambda p: torch.optim.AdamW(p, maximize=True), "AdamW with maximize"),
        (lambda p: torch.optim.Adagrad(p), "Adagrad"),
    ],
    ids=["amsgrad", "centered", "momentum", "maximize", "adagrad"],
)
def test_everything_else_is_passive_and_says_why(make, reason):
    shadow, _ = run(make, 1)
    assert shadow.status == "passive"
    assert f"No continuous limit is registered for {reason}." in shadow.records[-1].status_detail


class Louder(torch.optim.Adam):
    """Another optimizer: its step is its own."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize(
    ("cls", "flow"),
    [
        (gfs.optim.SGD, "gradient_flow"),
        (gfs.optim.Adam, "adam_flow"),
        (gfs.optim.AdamW, "adam_flow"),
        (gfs.optim.RMSprop, "rmsprop_flow"),
        (type("Mine", (torch.optim.Adam,), {}), "adam_flow"),
        (Louder, "none"),
    ],
)
@pytest.mark.parametrize("stepped", [False, True])
def test_a_class_that_steps_as_its_parent_has_its_parents_flow(cls, flow, stepped):
    if stepped:  # torch wraps the step of a class when it is first used
        theta = nn.Parameter(torch.ones(2))
        theta.grad = torch.ones(2)
        cls([theta], lr=0.1).step()
    shadow, _ = run(lambda p: cls(p, lr=0.1), 1)
    assert shadow.records[-1].flow == flow


def test_groups_a_flow_cannot_follow_are_refused_at_attach():
    model = nn.ParameterList([torch.ones(2), torch.ones(1)])
    groups = [{"params": [model[0]], "momentum": 0.5}, {"params": [model[1]]}]

    def fn(model, batch):
        return model[0].square().sum() + model[1].square().sum()

    two = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    assert gfs.attach(two, model, fn, data=H, probes=()).records[0].flow == "momentum_flow"
    with pytest.raises(ValueError, match=r"^param_groups must be of one lr, one mom.*momentum_"):
        gfs.attach(two, model, fn, data=H, flow="heavy_ball")
    adam = torch.optim.Adam([{"params": [model[0]], "lr": 0.1}, {"params": [model[1]]}])
    with pytest.raises(ValueError, match=r"^param_groups must agree in lr, eps and betas"):
        gfs.attach(adam, model, fn, data=H)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_on_a_relu_network_is_resolved_from_the_first_steps_on(make):
    torch.manual_seed(0)
    x, model = (
        torch.randn(128, 10),
        nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3)),
    )
    y = (x @ torch.randn(10, 3)).argmax(1)
    optimizer = make(model.parameters(), lr=1e-3)
    shadow = gfs.attach(
        optimizer,
        model,
        lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]),
        data=(x, y),
        probes=(),
        bounds=(),
        on_error="raise",
    )
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    ratios = [r.solver_error / r.discrepancy for r in shadow.records[1:]]
    assert sum(ratio < 0.5 for ratio in ratios) >= 36
    grads = shadow.summary()["by_purpose"]["grads"]
    assert (grads["flow"] + grads.get("error", 0)) / 40 < 12
    shadow.detach()
