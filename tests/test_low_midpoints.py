"""Modes `batch` and `local` in low storage: few copies, and the records of full storage."""

import pytest
import torch
from cases import F64, network, squared
from test_memory import FULL, LOW, SLOW, memory
from torch import nn

import torch_gfshadow as gfs
from torch_gfshadow import _blocks, midpoints
from torch_gfshadow.low_midpoints import LowPair
from torch_gfshadow.midpoints import FullPair

BOTH = pytest.mark.parametrize("mode", ["batch", "local"])


def grouped(model):
    even, odd = list(model.parameters())[::2], list(model.parameters())[1::2]
    groups = [{"params": even, "weight_decay": 0.03}, {"params": odd, "lr": 0.05}]
    return torch.optim.SGD(groups, lr=0.2)


def plain(model):
    return torch.optim.SGD(model.parameters(), lr=0.2)


def run(solver, activation, mode, optimizer=plain, dtype=F64, steps=30, **options):
    model, (x, y) = network(activation, dtype=dtype)
    stepped = optimizer(model)
    options = {"solver": solver, "probes": [], "bounds": [], "on_error": "raise"} | options
    shadow = gfs.attach(stepped, model, squared, mode=mode, **options)
    for k in range(steps):
        batch = x[k % 3 :: 3], y[k % 3 :: 3]
        stepped.zero_grad()
        shadow.observe(batch)
        squared(model, batch).backward()
        stepped.step()
    shadow.detach()
    return shadow


def pair_of(shadow):
    return shadow._tracker.follower.shadow._pair


FIELDS = ("discrepancy", "solver_error", "shadow_loss", "local_defect", "distance_from_init")


@BOTH
@pytest.mark.parametrize("optimizer", [plain, grouped])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_low_and_full_storage_give_the_same_records(activation, optimizer, mode, monkeypatch):
    monkeypatch.setattr(midpoints, "SMALL", 0)  # kinks are watched one by one in small models alone
    low, full = (run(solver, activation, mode, optimizer) for solver in (LOW, FULL))
    assert type(pair_of(low)) is LowPair
    assert type(pair_of(full)) is FullPair
    assert len(low.records) == 31
    # a kink that one of two solutions passes a rounding later turns both
    tolerance = 1e-9 if activation is nn.Tanh else 1e-4
    for a, b in zip(low.records[1:], full.records[1:], strict=True):
        assert a.n_grad_evals == b.n_grad_evals
        assert a.audit == b.audit == "match"
        for name in FIELDS:
            left, right = getattr(a, name), getattr(b, name)
            assert left == (None if right is None else pytest.approx(right, rel=tolerance))


@BOTH
def test_in_single_precision_they_agree_to_rounding(mode):
    low, full = (run(s, nn.Tanh, mode, dtype=torch.float32, steps=100) for s in (LOW, FULL))
    for a, b in zip(low.records[1:], full.records[1:], strict=True):
        assert a.discrepancy == pytest.approx(b.discrepancy, rel=1e-5)
        assert a.solver_error == pytest.approx(b.solver_error, rel=1e-3)
        assert a.shadow_loss == pytest.approx(b.shadow_loss, rel=1e-5)


@pytest.mark.parametrize(
    ("activation", "mode", "rate", "every", "most"),
    [
        (nn.Tanh, "batch", 5e-3, 1, 8.3),
        (nn.ReLU, "batch", 5e-2, 3, 10.3),  # the parameters at the last record
        pytest.param(nn.Tanh, "batch", 1e-5, 1, 7.3, marks=SLOW),  # a step per piece
        pytest.param(nn.ReLU, "batch", 5e-2, 1, 9.3, marks=SLOW),
        pytest.param(nn.ReLU, "local", 5e-2, 1, 9.3, marks=SLOW),
    ],
)
def test_few_copies_of_the_parameters(activation, mode, rate, every, most, monkeypatch):
    monkeypatch.setitem(memory.WIDTH, "tiny", 256)
    monkeypatch.setitem(memory._STEPS, "tiny", 3)
    monkeypatch.setattr(_blocks, "BLOCK", 8192)  # as small beside 655,360 parameters

    def optimizer(model):
        return torch.optim.SGD(model.parameters(), lr=rate)

    options = {"solver": LOW, "mode": mode, "every": every}
    peak, _ = memory.shadow_memory("tiny", activation, optimizer, **options)
    assert most - 1.0 < peak <= most


def test_ten_million_parameters_take_twelve_copies_at_most(monkeypatch):
    monkeypatch.setitem(memory._STEPS, "quick", 2)
    peak, rest = memory.shadow_memory("quick", nn.ReLU, mode="batch")
    assert 6.0 < peak <= 12.0
    assert rest <= 4.2


def test_a_flow_with_memory_is_in_full_storage():
    def heavy(model):
        return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    shadow = run(LOW, nn.Tanh, "batch", heavy, steps=4, flow="heavy_ball")
    assert type(pair_of(shadow)) is FullPair
    assert shadow.records[-1].discrepancy > 0.0
