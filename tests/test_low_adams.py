"""adams2 in low storage: step by step the two solutions of full storage, and the same error bar."""

import math
import statistics

import pytest
import torch
from cases import F64, network, objective_of, squared
from test_kinks import Checkpointed, deep
from test_memory import KINKS, KINKS_FULL, run
from test_solvers import LINEAR, START, RandomWalk, decay, start_at
from torch import nn

from torch_gfshadow._blocks import Stretch
from torch_gfshadow.solvers import Adams2
from torch_gfshadow.solvers.auto import AutoStepper
from torch_gfshadow.solvers.base import Node
from torch_gfshadow.solvers.low_adams import LowStorageAdams


def both(field, state, h):
    return [start_at(config, field, state, h) for config in (KINKS, KINKS_FULL)]


def agree(low, full, rtol=1e-11):
    torch.testing.assert_close(low.right.state, full.right.state, rtol=rtol, atol=1e-13)
    assert low.right.time == pytest.approx(full.right.time, rel=1e-12)
    assert low.next_step == pytest.approx(full.next_step, rel=1e-2)


def test_both_take_the_same_steps_to_the_same_places():
    low, full = both(decay, START, 0.02)
    for k in range(60):
        h = 0.02 + 0.005 * math.sin(k)
        assert low.step(1.0, h, h)
        assert full.step(1.0, h, h)
        agree(low, full)
        if k > 8:  # rounded to three digits, but for the sum of what it moved by
            assert low.error == pytest.approx(full.error, rel=0.05)
        torch.testing.assert_close(low.left.state, full.left.state, rtol=0, atol=4e-6)
        middle = 0.5 * (low.left.time + low.right.time)
        torch.testing.assert_close(
            low.interpolate(middle), full.interpolate(middle), rtol=0, atol=4e-6
        )


@pytest.mark.parametrize("seed", range(4))
def test_across_jumps_the_bars_are_the_same(seed):
    low, full = both(RandomWalk(seed), torch.zeros(61, dtype=F64), 0.01)
    for _ in range(200):
        assert low.step(1e-3, 0.01, 0.01)
        assert full.step(1e-3, 0.01, 0.01)
    agree(low, full)
    assert low.error == pytest.approx(full.error, rel=1e-2)


def test_an_error_taken_over_is_carried_alike():
    low, full = both(decay, START, 0.01)
    for stepper in (low, full):
        stepper.step(1.0, 0.01, 0.01)
        stepper.inherit(torch.tensor([1e-3, -2e-3, 1e-3, 0.0], dtype=F64))
        for _ in range(201):
            stepper.step(1.0, 0.01, 0.01)
    assert low.error == pytest.approx(full.error, rel=1e-2)
    agree(low, full)


class Cliff:
    """A decay that is not a number for a while: on some evaluations, whatever they are for."""

    def __init__(self, failing):
        self.failing, self.calls = failing, 0

    def __call__(self, y):
        self.calls += 1
        return decay(y) * (math.nan if self.calls in self.failing else 1.0)


@pytest.mark.parametrize("call", range(20, 32))
def test_after_a_rejected_step_it_goes_on_from_where_it_was(call):
    field = Cliff({call})
    low, accepted = start_at(KINKS, field, START, 0.01), []
    for _ in range(100):
        before = low.right.state, low.error
        accepted.append(low.step(1.0, 0.0, 0.01))
        if not accepted[-1]:
            torch.testing.assert_close(low.right.state, before[0], rtol=0, atol=1e-6)
            assert low.error == pytest.approx(before[1], rel=1e-6)
    # a companion's slope that is none is a matter of the companion
    assert sum(accepted) >= 99
    exact = torch.linalg.matrix_exp(-low.right.time * LINEAR) @ START
    assert float((low.right.state - exact).norm()) <= max(low.error, 1e-6)
    assert math.isfinite(low.error)
    assert low.error < 1e-3


def test_an_odd_and_an_even_step_can_be_rejected():
    outcomes = set()
    for call in range(20, 32):
        low = start_at(KINKS, Cliff({call}), START, 0.01)
        for k in range(40):
            if not low.step(1.0, 0.0, 0.01):
                outcomes.add(k % 2)
    assert outcomes == {0, 1}


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize(("decay", "dtype"), [(0.0, torch.float32), (0.01, F64)])
def test_low_and_full_storage_agree_within_their_bars_across_kinks(decay, every, dtype):
    options = {"lr": 0.02, "every": every, "sgd": {"weight_decay": decay}, "dtype": dtype}
    low, full = run(KINKS, nn.ReLU, **options), run(KINKS_FULL, nn.ReLU, **options)
    assert [r.step for r in low.records] == [r.step for r in full.records]
    for a, b in zip(low.records[1:], full.records[1:], strict=True):
        assert abs(a.discrepancy - b.discrepancy) <= a.solver_error + b.solver_error
        assert a.shadow_loss == pytest.approx(b.shadow_loss, rel=1e-3)
    ratios = [
        a.solver_error / b.solver_error
        for a, b in zip(low.records[1:], full.records[1:], strict=True)
    ]
    assert statistics.median(ratios) == pytest.approx(1.0, abs=0.1)
    assert low.records[-1].n_grad_evals <= 1.05 * full.records[-1].n_grad_evals


@pytest.mark.parametrize("flow", ["heavy_ball", "momentum_flow"])
def test_flows_with_memory_and_of_momentum_agree_too(flow):
    options = {"lr": 0.005, "sgd": {"momentum": 0.9}, "flow": flow, "steps": 20}
    low, full = run(KINKS, nn.ReLU, **options), run(KINKS_FULL, nn.ReLU, **options)
    for a, b in zip(low.records[2:], full.records[2:], strict=True):
        assert a.discrepancy == pytest.approx(b.discrepancy, rel=1e-2)
        assert a.solver_error == pytest.approx(b.solver_error, rel=0.3)


def written(objective, theta, entered):
    out = torch.full_like(theta, math.nan)
    stretch = Stretch([(theta, 1.0)], [(theta, 2.0), (theta, -1.0), (entered - theta, 1.0)])
    return objective.write_grad(out, stretch, "flow"), out


def pooled():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2)
    ).to(F64)
    return model, (torch.randn(6, 1, 8, 8, dtype=F64), torch.randn(6, 2, dtype=F64))


@pytest.mark.parametrize("make", [lambda: network(nn.ReLU), lambda: network(nn.Tanh), pooled])
def test_what_it_writes_is_the_averaged_gradient(make):
    model, data = make()
    halves = [tuple(t[:4] for t in data), tuple(t[4:] for t in data)]
    for given in (data, halves):
        objective = objective_of(model, squared, given)
        theta = objective.layout.current()
        entered = 0.9 * theta
        loss, grad = objective.loss_and_grad(theta, "flow", entered=entered)
        counts = dict(objective.ledger.grads), dict(objective.ledger.losses)
        value, out = written(objective, theta, entered)
        assert value == pytest.approx(loss, rel=1e-12)
        torch.testing.assert_close(out, grad, rtol=1e-9, atol=1e-12)
        assert objective.ledger.grads["flow"] == counts[0]["flow"] + 1
        assert objective.ledger.losses["flow"] == 2 * counts[1].get("flow", 0)
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_model_is_written_plainly(reentrant):
    model, data = deep(nn.ReLU())
    objective = objective_of(Checkpointed(model, reentrant), squared, data)
    theta = objective.layout.current()
    _, plain = objective.loss_and_grad(theta, "setup")
    _, got = written(objective, theta, 0.99 * theta)
    torch.testing.assert_close(got, plain, rtol=1e-12, atol=1e-14)
    assert not objective.kinked


def test_auto_goes_over_to_it_where_it_stands():
    field, state = RandomWalk(3), torch.zeros(61, dtype=F64)
    stepper = AutoStepper(field, Node(0.0, state, field(state)), 0.01, low=True)
    for _ in range(200):
        stepper.step(1e-3, 0.005, 0.02)
    assert stepper.name == "auto:adams2"
    assert isinstance(stepper._inner, LowStorageAdams)
    assert stepper.rough
    t = stepper.right.time
    truth = stepper.right.state[1:] - field.integral(t)
    assert float(truth.norm()) < 0.02
    total = sum(w * v for v, w in stepper.blend(t - 0.001))
    torch.testing.assert_close(total, stepper.interpolate(t - 0.001))
    saved = stepper.state_dict()
    twin = AutoStepper(field, Node(0.0, state, field(state)), 0.01, low=True)
    twin.load_state_dict(saved)
    for s in (stepper, twin):
        s.step(1e-3, 0.005, 0.02)
    assert torch.equal(stepper.right.state, twin.right.state)


def test_storage_is_a_choice_of_three():
    with pytest.raises(ValueError, match="storage must be 'auto', 'low' or 'full', got 'small'"):
        Adams2(storage="small")
