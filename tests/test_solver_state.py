"""A saved solver goes on bit for bit as if it had never been stopped."""

import io

import pytest
import torch
from cases import F64, network, objective_of, seeded, squared
from torch import nn

from torch_gfshadow.flows import GradientFlow
from torch_gfshadow.shadow import ShadowFlow
from torch_gfshadow.solvers import RKC2, Adams2, Auto, Bosh3, Dopri5, Dopri8, Doubled
from torch_gfshadow.solvers.base import Node
from torch_gfshadow.solvers.error_bar import ErrorBar

CONFIGS = {"bosh3": Bosh3(), "dopri5": Dopri5(), "dopri8": Dopri8(), "adams2": Adams2()}
CONFIGS |= {
    "rkc2 low": RKC2(storage="low"),
    "rkc2": RKC2(),
    "doubled": Doubled(),
    "auto": Auto(),
    "auto float32": Auto(dtype=torch.float32),
}


def through_disk(state):
    """What torch.save and a safe torch.load make of a state."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b):
    """Equality to the last bit, tensors included."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


class Kinks:
    """∇ of a random two-layer ReLU function."""

    def __init__(self, dtype=F64, dim=12, units=3000):
        make = seeded(0)
        self.w, self.b, self.a = (
            torch.randn(*size, generator=make, dtype=F64).to(dtype)
            for size in ((units, dim), (units,), (units, dim))
        )
        self.a /= units**0.5

    def __call__(self, y):
        return 3.0 + (self.w @ y + self.b > 0).to(y.dtype) @ self.a - torch.sin(y)


def pendulum(y):
    return torch.stack([y[1], -torch.sin(y[0])])


@pytest.mark.parametrize("stop", [0, 1, 2, 7, 90])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_resumed_stepper_goes_on_as_if_never_stopped(name, stop):
    config = CONFIGS[name]
    rough = name.startswith(("adams", "auto"))
    field = Kinks(config.dtype) if rough else pendulum
    dim = 12 if rough else 2
    start = 0.3 * torch.randn(dim, generator=seeded(3), dtype=F64).to(config.dtype)
    stepper = config.start(field, Node(0.0, start, field(start)), 0.01)
    for _ in range(stop):
        stepper.step(1e-5, 1e-4)
    saved = through_disk(stepper.state_dict())
    again = config.resume(field, saved)
    assert again.name == stepper.name
    assert same(again.state_dict(), stepper.state_dict())
    kept = through_disk(saved)
    for _ in range(60):
        assert again.step(1e-5, 1e-4) == stepper.step(1e-5, 1e-4)
        middle = 0.3 * stepper.left.time + 0.7 * stepper.right.time
        assert torch.equal(again.interpolate(middle), stepper.interpolate(middle))
        assert same(again.state_dict(), stepper.state_dict())
    assert same(saved, kept)  # going on leaves the saved state alone
    if name == "auto" and stop == 90:
        assert stepper.rough


def test_a_rejected_step_leaves_the_dense_output_of_the_last_one():
    stepper = Dopri5().start(pendulum, Node(0.0, *(torch.tensor([1.0, 0.5], dtype=F64),) * 2), 0.1)
    assert stepper.step(1e-3)
    inside = stepper.interpolate(0.05)
    assert not stepper.step(1e-30)
    assert torch.equal(stepper.interpolate(0.05), inside)


def test_resuming_with_another_solver_is_refused():
    start = torch.tensor([1.0, 0.5], dtype=F64)
    saved = Bosh3().start(pendulum, Node(0.0, start, pendulum(start)), 0.1).state_dict()
    with pytest.raises(ValueError, match="saved by solver 'dopri5', got one of 'bosh3'"):
        Dopri5().resume(pendulum, saved)
    with pytest.raises(ValueError, match="solver 'adams2'"):
        Adams2().resume(pendulum, saved)
    with pytest.raises(ValueError, match="solver 'auto'"):
        Auto().resume(pendulum, saved)


@pytest.mark.parametrize("two_sided", [False, True])
def test_a_resumed_error_bar_goes_on_as_if_never_stopped(two_sided):
    def node(t):
        state = torch.tensor([1.0 + t, 0.5 - t], dtype=F64)
        return Node(t, state, pendulum(state))

    noise = seeded(1)
    bar = ErrorBar(pendulum, node(0.0))
    bar.two_sided = two_sided
    for k in range(1, 150):
        if k % 37 == 0:
            fresh = ErrorBar(pendulum, node(0.0))
            fresh.load_state_dict(through_disk(bar.state_dict()))
            assert fresh.value == bar.value
            old, bar = bar, fresh
            for b in (old, bar):
                b.add(torch.ones(2, dtype=F64) * 1e-6, node(0.1 * k), 0.3, 1e-3, 1e-7)
            assert old.value == bar.value
            continue
        error = 1e-6 * torch.randn(2, generator=noise, dtype=F64)
        bar.add(error, node(0.1 * k), 0.3, 1e-3, 1e-7)


CASES = {
    "tanh": (nn.Tanh, squared, Auto(), F64),
    "relu": (nn.ReLU, squared, Auto(), F64),
    "relu float32": (nn.ReLU, squared, Auto(), torch.float32),
    "tanh rkc2": (nn.Tanh, squared, RKC2(), F64),
    "tanh dopri5": (nn.Tanh, squared, Dopri5(), F64),
    "tanh float32 state": (nn.Tanh, squared, Bosh3(dtype=torch.float32), torch.float32),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_shadow_goes_on_as_if_never_stopped(case):
    activation, fn, config, dtype = CASES[case]
    model, data = network(activation, (6, 16, 16, 2), samples=200, dtype=dtype)
    objective = objective_of(model, fn, data)
    flow = GradientFlow()
    flow.configure([{"params": objective.layout.params}], objective.layout)
    theta = objective.layout.current(config.dtype)
    shadow = ShadowFlow(
        objective, flow, config, theta, objective.initial, time=0.0, step_size=0.1, resolution=None
    )
    for k in range(1, 80):
        if k in (1, 2, 30, 55):
            saved = through_disk(shadow.state_dict())
            before = objective.ledger.n_grads
            again = ShadowFlow.resumed(objective, flow, config, saved, resolution=None)
            assert objective.ledger.n_grads == before
            for ahead in range(k, k + 12):
                assert again.advance(0.1 * ahead)
                again.observe(1e-3 * ahead)
            seen = []
        assert shadow.advance(0.1 * k)
        shadow.observe(1e-3 * k)
        seen.append(k)
        if len(seen) == 12:
            assert same(again.state_dict(), shadow.state_dict())
            now = 0.1 * k
            assert torch.equal(again.state(now), shadow.state(now))
            assert (again.error, again.loss(now)) == (shadow.error, shadow.loss(now))
            assert (again.solver, again.rough) == (shadow.solver, shadow.rough)
    if case.startswith("relu"):
        assert shadow.rough


def test_a_shadow_that_left_stays_left_after_resuming():
    model, data = network(nn.Tanh)
    objective = objective_of(model, squared, data)
    flow = GradientFlow()
    flow.configure([{"params": objective.layout.params}], objective.layout)
    shadow = ShadowFlow(
        objective,
        flow,
        Auto(max_evals=0.01),
        objective.layout.current(F64),
        objective.initial,
        time=0.0,
        step_size=0.1,
        resolution=None,
    )
    assert not shadow.advance(50.0)
    saved = through_disk(shadow.state_dict())
    again = ShadowFlow.resumed(objective, flow, Auto(), saved, resolution=None)
    assert not again.alive
    assert again.status == "truncated"
    assert again.detail == shadow.detail
