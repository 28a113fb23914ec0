"""Networks, the ratio protocol against closed forms, and what is said about a run."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from torch_gfshadow.experiments.networks import cross_entropy, fully_connected
from torch_gfshadow.experiments.ratios import append_row, read_rows, run_ratios


class Point(nn.Module):
    """θ ∈ R^3 starting at (1, 1, 1)."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(3, dtype=dtype))


CURVATURES = torch.tensor([3.0, 1.0, -0.5], dtype=torch.float64)


def quadratic(model, curvatures):
    return 0.5 * (curvatures.to(model.theta.dtype) * model.theta**2).sum()


# ---------------------------------------------------------------------------- networks


def test_the_linear_network_is_a_product_of_three_xavier_matrices():
    model = fully_connected("linear", seed=1)
    weights = list(model.parameters())
    assert [tuple(w.shape) for w in weights] == [(50, 784), (50, 50), (10, 50)]
    for w in weights:
        limit = (6 / sum(w.shape)) ** 0.5
        assert 0.98 * limit < float(w.detach().abs().max()) <= limit
    x = torch.randn(4, 784)
    torch.testing.assert_close(model(x), x @ weights[0].T @ weights[1].T @ weights[2].T)


def test_both_activations_and_dtypes_start_at_the_same_weights():
    weights = [
        torch.cat([p.detach().double().reshape(-1) for p in fully_connected(*key).parameters()])
        for key in (
            ("linear", (5, 4, 3), 7),
            ("relu", (5, 4, 3), 7),
            ("relu", (5, 4, 3), 7, torch.float64),
        )
    ]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    model = fully_connected("relu", (5, 4, 3))
    assert [type(m).__name__ for m in model] == ["Linear", "ReLU", "Linear"]


def test_building_a_network_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    fully_connected("relu", (5, 4, 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("tanh",), "activation must be 'linear' or 'relu'"), (("relu", (5,)), "widths must be two")],
)
def test_an_impossible_network_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fully_connected(*arguments)


def test_cross_entropy_of_a_network_that_says_nothing_is_log_ten():
    model = fully_connected("linear")
    with torch.no_grad():
        list(model.parameters())[-1].zero_()
    batch = torch.randn(6, 784), torch.arange(6)
    assert cross_entropy(model, batch).item() == pytest.approx(math.log(10))


# ---------------------------------------------------------------------------- ratio protocol


def test_the_ratio_protocol_on_a_quadratic_is_the_closed_form():
    eta, steps = 0.05, 40
    run = run_ratios(Point(), quadratic, CURVATURES, step_size=eta, steps=steps, every=10)
    assert [row.step for row in run.rows] == [0, 10, 20, 30, 40]
    for row in run.rows:
        k = row.step
        coarse = (1 - eta * CURVATURES) ** k
        assert row.distance_from_init == pytest.approx(float((coarse - 1).norm()), rel=1e-12)
        for r, distance in row.distances.items():
            fine = (1 - eta / r * CURVATURES) ** (r * k)
            assert distance == pytest.approx(float((coarse - fine).norm()), rel=1e-10, abs=1e-15)
            loss = float(0.5 * (CURVATURES * fine**2).sum())
            assert row.losses[r] == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize("ratios", [(2, 5, 10, 20), (4, 8), (10,)])
def test_the_extrapolated_distance_is_the_discrepancy_from_the_flow_within_its_bar(ratios):
    eta, steps = 0.05, 40
    run = run_ratios(
        Point(), quadratic, CURVATURES, step_size=eta, steps=steps, every=5, ratios=ratios
    )
    for row in run.rows[1:]:
        flow = torch.exp(-CURVATURES * eta * row.step)
        truth = float(((1 - eta * CURVATURES) ** row.step - flow).norm())
        assert abs(row.extrapolated - truth) <= row.extrapolated_error
        assert row.extrapolated_error < 0.3 * truth  # and the bar says something


def test_to_first_order_the_distance_is_one_minus_one_over_r_of_the_discrepancy():
    eta, k = 4e-3, 100
    row = run_ratios(Point(), quadratic, CURVATURES, step_size=eta, steps=k, every=k).rows[-1]
    flow = torch.exp(-CURVATURES * eta * k)
    truth = float(((1 - eta * CURVATURES) ** k - flow).norm())
    for r, distance in row.distances.items():
        assert distance == pytest.approx((1 - 1 / r) * truth, rel=5e-3)


def test_gradients_are_counted_and_37_are_extra_per_step():
    calls = 0

    def counted(model, data):
        nonlocal calls
        calls += torch.is_grad_enabled()
        return quadratic(model, data)

    run = run_ratios(Point(), counted, CURVATURES, steps=7)
    assert run.extra_per_step == 37
    assert run.n_grad_evals == 7 * 38 == calls


def test_the_model_that_is_passed_in_stays_where_it_is():
    model = Point()
    before = copy.deepcopy(model.state_dict())
    run_ratios(model, quadratic, CURVATURES, steps=3)
    assert torch.equal(model.theta, before["theta"])
    assert model.theta.grad is None


def test_rounding_is_measured_and_part_of_the_bar():
    arguments = dict(step_size=1e-3, steps=150, every=150, ratios=(10, 20))
    exact = run_ratios(Point(), quadratic, CURVATURES, **arguments).rows[-1]
    rough = run_ratios(Point(torch.float32), quadratic, CURVATURES, **arguments).rows[-1]
    assert exact.rounding[20] < 1e-11
    assert rough.rounding[20] > 1e-7
    assert abs(rough.distances[20] - exact.distances[20]) < 3 * rough.rounding[20]
    assert abs(rough.extrapolated - exact.extrapolated) <= rough.extrapolated_error


def test_every_row_is_reported_when_it_is_made_and_reads_back(tmp_path):
    path = tmp_path / "ratios.jsonl"
    seen = []

    def keep(row):
        seen.append(row.step)
        append_row(path, row)

    run = run_ratios(Point(), quadratic, CURVATURES, steps=10, every=4, on_row=keep)
    assert seen == [0, 4, 8, 10]
    assert read_rows(path) == list(run.rows)
    with path.open("a") as file:
        file.write('{"step": 12, "dist')  # a torn last line is dropped
    assert read_rows(path) == list(run.rows)
    path.write_text("no row\n" + json.dumps(run.rows[0].to_dict()) + "\n")
    with pytest.raises(ValueError, match=r"line 1 of .* must be a ratio row"):
        read_rows(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"step_size": -1.0}, "step_size must be positive, got -1.0"),
        ({"ratios": (1, 2)}, "ratios must be integers above 1"),
        ({"ratios": ()}, "ratios must be integers above 1"),
    ],
)
def test_an_impossible_protocol_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_ratios(Point(), quadratic, CURVATURES, **{"steps": 2, **arguments})
