"""Step size advice: certified below measured, estimates told apart, refusals with a reason."""

import json
import math

import pytest
import torch
from cases import Point, diagonal
from click.testing import CliRunner
from torch import nn

import torch_gfshadow as gfs
from torch_gfshadow.cli import main

F64 = torch.float64
CURVATURE = torch.tensor([-0.5, 1.0], dtype=F64)
START = [0.3, 1.0]


def quadratic_advice(**changes):
    model = Point(START)
    options = {"horizon": 2.0, "eps": 0.02, **changes}
    return gfs.step_size_advice(model, diagonal, CURVATURE[None], **options), model


def largest_discrepancy(eta, horizon=2.0):
    worst, theta = 0.0, torch.tensor(START, dtype=F64)
    for k in range(1, round(horizon / eta) + 1):
        theta = theta - eta * CURVATURE * theta
        flow = torch.exp(-CURVATURE * eta * k) * torch.tensor(START, dtype=F64)
        worst = max(worst, float((theta - flow).norm()))
    return worst


def test_the_measured_step_is_the_largest_that_keeps_the_distance():
    advice, model = quadratic_advice()
    eta = advice["measured"].step_size
    assert largest_discrepancy(eta) <= 0.02
    steps = round(2.0 / eta)
    fewer = max(1, math.floor(steps / 1.25))  # clearly larger steps break it
    assert largest_discrepancy(2.0 / fewer) > 0.02 * 0.9
    assert model.theta.tolist() == START
    assert model.theta.grad is None


def test_estimates_are_theorem_3_with_the_curvature_of_the_flow():
    advice, _ = quadratic_advice()
    limit = advice["theorem3"]
    assert limit.kind == "estimated"
    assert "9 points of the flow" in limit.status
    gamma = float((CURVATURE * torch.tensor(START, dtype=F64)).norm())
    exact = gfs.bounds.theorem3([0.0, 2.0], 0.5, 1.0, gamma, 0.02).value["eta"]
    assert limit.step_size == pytest.approx(exact, rel=0.05)
    assert advice["theorem3, half step"].step_size == pytest.approx(2 * limit.step_size, rel=0.05)
    assert advice["corollary1"].kind == "estimated"


def test_what_is_no_deep_linear_network_has_no_certificate_and_says_why():
    limit = quadratic_advice()[0]["tube"]
    assert (limit.kind, limit.step_size) == ("certified", None)
    assert limit.status.startswith("not covered: ")
    assert limit.status.lower().count("not covered") == 1


@pytest.mark.parametrize("activation", [None, nn.ReLU()])
def test_an_estimate_across_kinks_says_that_the_theorem_does_not_hold_there(activation):
    model, objective, data = regression(activation)
    advice = gfs.step_size_advice(model, objective, data, horizon=0.5, eps=0.05, max_steps=50)
    for name in ("theorem3", "theorem3, half step", "corollary1"):
        assert ("kinks" in advice[name].status) == (activation is not None)


def regression(activation=None, mean=False):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False)]
    if activation is not None:
        layers.insert(1, activation)
    model = nn.Sequential(*layers).double()
    x = torch.randn(30, 3, dtype=F64).abs()
    y = x @ torch.randn(3, 1, dtype=F64)

    def squared(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().mean()

    def mse(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    return model, mse if mean else squared, (x, y)


def test_a_deep_linear_network_has_a_certificate_below_the_measured_step():
    advice = gfs.step_size_advice(*regression(), horizon=1.0, eps=0.05)
    certified, measured = advice["tube"], advice["measured"]
    assert certified.kind == "certified"
    assert 0 < certified.step_size <= measured.step_size * 1.05
    assert "square" in certified.status
    assert advice["theorem3"].step_size < certified.step_size
    assert advice.n_grad_evals > 0


@pytest.mark.parametrize("loader", [False, True])
def test_cross_entropy_has_a_certificate_too_and_so_have_batches(loader):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    x = torch.randn(20, 3, dtype=F64)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    batches = torch.utils.data.DataLoader(data, batch_size=10) if loader else data.tensors

    def objective(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    advice = gfs.step_size_advice(model, objective, batches, horizon=1.0, eps=0.05, max_steps=200)
    certified = advice["tube"]
    assert 0 < certified.step_size <= advice["measured"].step_size * 1.05
    assert "cross-entropy" in certified.status


def test_a_layer_that_is_not_trained_has_no_certificate():
    model, objective, data = regression()
    model[0].weight.requires_grad_(False)
    limit = gfs.step_size_advice(model, objective, data, horizon=0.5, eps=0.05)["tube"]
    assert limit.step_size is None


def test_twice_the_loss_halves_the_step_and_the_horizon():
    one = gfs.step_size_advice(*regression(), horizon=1.0, eps=0.05)["tube"].step_size
    two = gfs.step_size_advice(*regression(mean=True), horizon=0.5, eps=0.05)["tube"].step_size
    assert two == pytest.approx(one / 2, rel=1e-6)


def test_a_relu_that_happens_to_be_linear_at_the_start_is_not_certified():
    model, squared, data = regression(nn.ReLU())
    with torch.no_grad():
        for p in model.parameters():
            p.abs_()
    limit = gfs.step_size_advice(model, squared, data, horizon=0.2, eps=0.05)["tube"]
    assert limit.step_size is None
    assert "deep linear" in limit.status


def test_no_step_small_enough_is_an_answer_with_a_reason():
    limit = quadratic_advice(eps=1e-9, max_steps=16)[0]["measured"]
    assert limit.step_size is None
    assert limit.status.startswith("none with 16 steps; at η = ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0.0}, "horizon must be positive and finite, got 0.0"),
        ({"eps": math.nan}, "eps must be positive and finite, got nan"),
        ({"samples": 1}, "samples must be an integer of at least 2, got 1"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        quadratic_advice(**change)


FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    y = x.sum(1, keepdim=True)
    return model, lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().mean(), (x, y)
"""


def test_the_command_prints_a_table_or_json(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FACTORY)
    command = ["step-size", f"{path}:make", "--horizon", "0.5", "--eps", "0.05"]
    result = CliRunner().invoke(main, [*command, "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert {limit["kind"] for limit in answer["limits"]} == {"certified", "estimated", "measured"}
    table = CliRunner().invoke(main, command)
    assert table.exit_code == 0, table.output
    assert "measured" in table.stdout
    assert CliRunner().invoke(main, ["step-size", f"{path}:make"]).exit_code == 2
