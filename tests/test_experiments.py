"""Networks, the ratio protocol against closed forms, and what is said about a run."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from torch_gfshadow.experiments.data import mnist_digits
from torch_gfshadow.experiments.fig1 import Settings, run_fig1_ratios, run_shadow
from torch_gfshadow.experiments.networks import convolutional, cross_entropy, fully_connected
from torch_gfshadow.experiments.ratio_rows import RatioRow, append_row, read_rows
from torch_gfshadow.experiments.ratios import run_ratios
from torch_gfshadow.experiments.summary import summarise_records, summarise_rows
from torch_gfshadow.experiments.verdict import compare
from torch_gfshadow.loggers import read_records
from torch_gfshadow.record import Record
from torch_gfshadow.report.verdict import judge
from torch_gfshadow.status import Status


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


def test_rounding_is_measured_and_taken_out_of_the_extrapolation():
    arguments = {"step_size": 1e-3, "steps": 150, "every": 150, "ratios": (10, 20)}
    exact = run_ratios(Point(), quadratic, CURVATURES, **arguments).rows[-1]
    rough = run_ratios(Point(torch.float32), quadratic, CURVATURES, **arguments).rows[-1]
    assert exact.rounding[20] < 1e-11
    assert rough.rounding[20] > 1e-7
    assert abs(rough.distances[20] - exact.distances[20]) < 2 * rough.rounding[20]
    left = abs(rough.extrapolated - exact.extrapolated)
    # what is left: the rounding of the run at η itself, and a part of what was taken out
    assert left <= rough.rounding[1] + 0.1 * (2 * rough.rounding[20] + rough.rounding[10])


def test_fine_runs_in_float64_leave_the_coarse_run_in_float32():
    def seen(model, data):
        kinds.add((model.theta.dtype, data["h"].dtype, data["n"].dtype))
        return quadratic(model, data["h"])

    kinds = set()
    data = {"h": CURVATURES.float(), "n": torch.arange(3)}
    arguments = {"step_size": 1e-3, "steps": 150, "every": 150, "ratios": (10, 20)}
    mixed = run_ratios(Point(torch.float32), seen, data, fine_dtype=torch.float64, **arguments)
    assert kinds == {
        (torch.float32, torch.float32, torch.int64),
        (torch.float64, torch.float64, torch.int64),
    }
    rounding = mixed.rows[-1].rounding
    assert rounding[1] > 1e-8
    assert rounding[20] < 1e-11


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


# ---------------------------------------------------------------------------- verdicts


def record(step=100, **fields):
    return Record(
        **{
            "step": step,
            "time": 0.1,
            "discrepancy": 1e-3,
            "solver_error": 5e-5,
            "distance_from_init": 2.0,
            "audit": "match",
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("fields", "level", "words"),
    [
        ({}, "resolved", "lies 0.001 ± 5e-05 from gradient flow, 0.05% of the 2 it travelled"),
        ({"solver_error": 6e-4}, "partly resolved", "the truth lies between 0.0004 and 0.0016"),
        ({"solver_error": 2e-3}, "unresolved", "at most 0.003 from gradient flow"),
        ({"solver_error": None}, "unresolved", "of unknown accuracy"),
        ({"audit": "mismatch"}, "wrong objective", "shadow of another problem"),
        ({"discrepancy": None, "status": Status.PASSIVE}, "no shadow", "Give attach() a model"),
    ],
)
def test_the_verdict_says_how_much_of_the_discrepancy_is_known(fields, level, words):
    verdict = judge([record(0, discrepancy=None), record(**fields)])
    assert verdict.level == level
    assert words in verdict.text


@pytest.mark.parametrize("bar", [5e-5, 6e-4])
@pytest.mark.parametrize(
    ("solver", "says"), [("auto:adams2", True), ("auto:slabs", True), ("auto:rkc2", False)]
)
def test_the_verdict_across_kinks_says_what_the_bar_may_miss(bar, solver, says):
    assert ("the flow can branch" in judge([record(solver_error=bar, solver=solver)]).text) is says


def test_the_verdict_is_about_the_last_record_that_measured_something():
    assert "after 100 steps" in judge([record(), record(200, discrepancy=None)]).text


def row(step, extrapolated=1e-3, error=1e-5):
    return RatioRow(
        step=step,
        distance_from_init=2.0,
        distances={2: 5e-4, 20: 9.5e-4},
        extrapolated=extrapolated,
        extrapolated_error=error,
        rounding={1: 0.0, 20: 0.0},
        losses={1: 1.0},
    )


def test_two_protocols_agree_where_their_error_bars_meet():
    records = [record(0, discrepancy=0.0), record(50), record(75), record(100)]
    rows = [row(0, 0.0), row(50, 2e-3), row(60), row(100, 1.059e-3)]
    agreement = compare(records, rows)
    assert (agreement.agree, agreement.step, agreement.n_common) == (True, 100, 2)
    assert agreement.share == 0.5
    assert "agree within their error bars there, and at 1 of 2" in agreement.text
    assert not compare(records, [row(100, 1.061e-3)]).agree
    assert "differ by more than their error bars" in compare(records, [row(100, 1.061e-3)]).text
    assert compare(records, [row(0), row(7)]) is None


def test_the_summary_splits_evaluations_by_purpose_and_is_json():
    records = [record(0), record(100, n_grad_evals=50, n_hvps=30, lambda_max=3.0), record(200)]
    evaluations = {"grads": {"flow": 30, "audit": 10, "probes": 10}, "hvps": {}, "losses": {}}
    summary = summarise_records(records, {"by_purpose": evaluations, "overhead": 0.2})
    assert summary["grad_evals_per_step"] == 50 / 200
    assert summary["grad_evals_per_step_excluding_probes"] == 40 / 200
    assert summary["grad_evals_per_step_by_purpose"] == {
        "flow": 30 / 200,
        "audit": 10 / 200,
        "probes": 10 / 200,
    }
    assert summary["overhead"] == 0.2
    assert summary["status_counts"] == {"ok": 3}
    assert summary["relative_error"] == pytest.approx(0.05)
    assert summary["lambda_max"] == 3.0  # the last probe, not the last record
    assert summary["lambda_min"] is None
    assert json.loads(json.dumps(summary)) == summary


def test_without_the_shadows_own_summary_the_split_is_unknown_not_wrong():
    summary = summarise_records([record(100, n_grad_evals=50)])
    assert summary["n_grad_evals"] == 50
    assert summary["n_grad_evals_excluding_probes"] is None


def test_the_ratio_summary_counts_what_the_protocol_needs():
    summary = summarise_rows([row(0), row(100)])
    assert summary["extra_grad_evals_per_step"] == 22
    assert summary["n_grad_evals"] == 2300
    assert json.loads(json.dumps(summary)) == summary


# ---------------------------------------------------------------------------- Figure 1


@pytest.fixture(scope="module")
def digits():
    return mnist_digits(60, root="no such directory", download=False)


def test_settings_default_to_the_papers_protocol_with_500_records_and_100_probes():
    settings = Settings()
    assert (settings.steps, settings.step_size, tuple(settings.ratios)) == (
        10_000,
        1e-3,
        (2, 5, 10, 20),
    )
    assert (settings.record_period, settings.probe_period) == (20, 100)
    assert (Settings(steps=30).record_period, Settings(steps=30).probe_period) == (1, 1)
    assert Settings(steps=100, every=7, probe_every=50).probe_period == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"every": -1}, "every must be at least 1, got -1"),
        ({"step_size": math.inf}, "step_size must be positive"),
        ({"dtype": "half"}, "dtype must be 'float32' or 'float64', got 'half'"),
        ({"fine_dtype": "half"}, "fine_dtype must be"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Settings(**arguments)


def test_a_run_reports_every_record_when_it_is_made_and_writes_them_all(digits, tmp_path):
    seen = []
    settings = Settings(steps=12, every=3, probe_every=6)
    run = run_shadow("linear", digits, settings, tmp_path, seen.append)
    assert [r.step for r in seen] == [0, 3, 6, 9, 12]
    assert [r.step for r in run.records] == [0, 3, 6, 9, 12]
    file = read_records(tmp_path / "records.jsonl")
    assert file.complete
    assert [r.to_dict() for r in file.records] == [r.to_dict() for r in run.records]
    assert [r.step for r in seen if r.lambda_min is not None] == [0, 6, 12]
    again = run_shadow("linear", digits, settings, tmp_path)  # replaces, does not append
    assert len(read_records(tmp_path / "records.jsonl").records) == len(again.records)


def test_the_run_is_plain_sgd_whatever_the_shadow_does(digits, tmp_path):
    settings = Settings(steps=9, dtype="float64")
    last = run_shadow("relu", digits, settings, tmp_path).records[-1]
    model, batch = settings.model("relu"), settings.batch(digits)
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(9):
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
    squares = sum(((p - s) ** 2).sum() for p, s in zip(model.parameters(), start, strict=True))
    assert last.distance_from_init == pytest.approx(squares.detach().sqrt().item(), rel=1e-9)
    assert last.loss == pytest.approx(cross_entropy(model, batch).item(), rel=1e-9)


def test_an_interrupt_in_the_callback_leaves_complete_records(digits, tmp_path):
    def stop(record):
        if record.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_shadow("linear", digits, Settings(steps=50, every=2), tmp_path, stop)
    file = read_records(tmp_path / "records.jsonl")
    assert [r.step for r in file.records] == [0, 2, 4, 6]
    assert file.complete  # the summary is there, too


def test_shadow_and_ratio_protocol_agree_on_a_short_run(digits, tmp_path):
    settings = Settings(steps=40, every=10, dtype="float64", ratios=(5, 10))
    run = run_shadow("linear", digits, settings, tmp_path)
    ratios = run_fig1_ratios("linear", digits, settings, tmp_path)
    agreement = compare(run.records, ratios.rows)
    assert agreement.n_common == 4
    assert agreement.share == 1.0, agreement.text
    assert judge(run.records).level == "resolved"
    assert read_rows(tmp_path / "ratios.jsonl") == list(ratios.rows)


# --- the convolutional networks of Figure 3


@pytest.mark.parametrize(
    ("kind", "n_parameters", "units"),
    [("adapted", 61_470, (1176, 400)), ("off_the_shelf", 61_706, (4704, 1600))],
)
def test_the_convolutional_networks_are_those_of_figure_3(kind, n_parameters, units):
    model = convolutional(kind)
    assert sum(p.numel() for p in model.parameters()) == n_parameters
    x, seen = torch.randn(2, 1, 28, 28), []
    for module in model:
        x = module(x)
        if isinstance(module, torch.nn.Conv2d):
            seen.append(x[0].numel())
    assert tuple(seen) == units
    assert x.shape == (2, 10)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == (5 if kind == "off_the_shelf" else 0)
    assert not any(b.any() for b in biases)


def test_a_convolutional_network_leaves_the_global_random_state_and_keeps_its_start_in_float64():
    state = torch.get_rng_state()
    single, double = convolutional(seed=3), convolutional(seed=3, dtype=torch.float64)
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert torch.equal(a.double(), b)
    with pytest.raises(ValueError, match="kind must be 'adapted' or 'off_the_shelf'"):
        convolutional("lenet")
    with pytest.raises(ValueError, match="network must be one of linear, relu, adapted"):
        Settings().model("lenet")
