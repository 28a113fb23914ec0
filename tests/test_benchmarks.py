"""Every benchmark runs at its smallest size, and its counts are what they must be."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from pages import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import (
    budget,
    calibration,
    calibration_batch,
    eigen,
    flow,
    idle,
    kinks,
    memory,
    ranks,
    referee,
    scaling,
    tables,
)
from benchmarks.__main__ import NAMES, PAGE
from benchmarks.networks import CASES, batch_of, digits
from benchmarks.tables import Table, write

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch.jit, by a peer
OURS = "**gfshadow**, default"


@pytest.fixture(scope="module")
def linear():
    return flow.measure("linear", "tiny")


def test_the_flow_table_holds_its_peers_and_their_exact_counts(linear):
    counts = linear.column("gradients per step")
    assert counts["centralflows' scheme: max(4, ⌈2ηλ⌉) Euler"] == 4.0  # η·λ < 2
    spans_of_rk4 = counts["edge-of-stability's scheme: RK4, h = 1/λ"]
    assert spans_of_rk4 == 4.0  # as h = 1/λ exceeds the span between records
    assert counts["torchdiffeq, a call per step, rtol 1e-05"] >= 8.0  # 2 to start, 6 a step
    once = counts["torchdiffeq, one call, rtol 1e-05"]
    assert 0 < once < counts["torchdiffeq, a call per step, rtol 1e-05"]


def test_errors_are_measured_against_a_reference_and_ours_holds_its_claim(linear):
    errors, claims = linear.column("true error / discrepancy"), linear.column("claimed")
    assert 0 < errors[OURS] <= claims[OURS] < 0.2
    # RK4 with h = 1/λ is accurate here, Euler is off by a part of the discrepancy itself
    rk4, euler = list(errors.values())[-2:]
    assert rk4 < 0.01
    assert 0.1 < euler < 0.5


def test_the_reference_is_the_flow():
    case, batch = CASES["linear"], batch_of(digits(40), flow.torch.float32)
    exact = flow.reference(case, batch, 10)
    run, _ = flow.descent(case, batch, 10)
    halved = case._replace(step_size=case.step_size / 2)
    finer, _ = flow.descent(halved, batch, 20)
    # gradient descent with half the step is twice as near
    ratio = float((run[-1] - exact[-1]).norm() / (finer[-1] - exact[-1]).norm())
    assert ratio == pytest.approx(2.0, rel=0.05)


def test_the_probe_needs_fewer_products_than_arpack_for_the_same_residual():
    table = eigen.measure("relu", "tiny")
    ours, theirs = (list(row) for row in table.rows[:2])
    assert "gfshadow" in ours[0]
    assert "scipy" in theirs[0]
    assert 2 < ours[1] < theirs[1]
    assert 2 < ours[3] < theirs[3]
    for row in (ours, theirs):
        assert max(row[4:6]) <= 0.01


def test_probes_along_a_run_cost_less_warm_than_cold_and_meet_the_tolerance():
    table = eigen.along("tiny")
    assert len(table.rows) == 3
    for _, _, cold, mean, middle, most, short, ratio in table.rows:
        assert 2 <= mean <= most
        assert 2 <= middle < cold
        assert short == 0
        assert 0.0 < ratio < 1.0


def test_the_referee_finds_the_ends_of_the_dense_hessian_and_misses_are_counted():
    case, batch = CASES["tanh"], batch_of(digits(20), torch.float32)
    model = torch.nn.Sequential(torch.nn.Linear(784, 1), torch.nn.Tanh(), torch.nn.Linear(1, 10))
    objective = eigen.objective_of(model, case.loss, batch)
    product = eigen.Curvature(objective).at(objective.layout.current())
    true = referee.referee(product)
    dense = torch.stack([product(row) for row in torch.eye(len(product.theta))]).double()
    exact = torch.linalg.eigvalsh(0.5 * (dense + dense.T))
    assert true == pytest.approx((float(exact[0]), float(exact[-1])), rel=1e-4)
    ends = referee.probe(product, None, False, 0)
    right = referee.Verdict(ends, *true)
    assert right.missed == (False, False)
    assert not right.unbounded
    # Had the search ended on other eigenvectors, or promised too much, it would be seen.
    wrong = replace(ends, lambda_min=0.8 * ends.lambda_min, lambda_max=0.9 * ends.lambda_max)
    assert referee.Verdict(wrong, *true).missed == (True, True)
    assert referee.Verdict(replace(ends, lower_bound=0.9 * true[0]), *true).unbounded


def test_probes_along_a_run_are_judged_by_kind(monkeypatch):
    monkeypatch.setattr(referee, "CASES", {"relu": CASES["relu"]})
    (table,) = referee.tables("tiny")
    assert [row[0] for row in table.rows] == ["relu, warm, 1 steps", "relu, refresh", "relu, cold"]
    for row in table.rows:
        assert row[1] == 2
        assert 2 < row[2] <= row[3] < 100
        assert row[4:7] == [0, 0, 0]


@pytest.fixture
def undisturbed(monkeypatch):
    """Time what this thread computes: what other jobs of the machine take is none of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other
    monkeypatch.setattr(tables, "time", SimpleNamespace(perf_counter=time.thread_time))
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("undisturbed")
def test_a_product_is_timed_against_a_gradient():
    for row in eigen.products("tiny").rows:
        assert row[2] == "func"
        assert 0.2 < row[3] < 10.0
        # one layer of 784 inputs, the rest of 50: the product does nothing it need not
        taken, least = row[6:]
        assert taken == pytest.approx(least, rel=1e-12)
        assert taken == pytest.approx(96_400 / 87_400)


@pytest.mark.parametrize("train", [False, True])
def test_a_product_on_resnet18_takes_the_least_that_arithmetic_allows(train):
    network = eigen.resnet18()
    if network is None:
        pytest.skip("no torchvision")
    draw = torch.Generator().manual_seed(0)
    batch = torch.randn(2, 3, 64, 64, generator=draw), torch.tensor([3, 8])
    objective = eigen.objective_of(network.train(train), eigen.cross_entropy, batch)
    product = eigen.Curvature(objective).at(objective.layout.current())
    taken, least = eigen.arithmetic(objective, product)
    assert least == pytest.approx(1.956, abs=0.001)
    # torch computes the derivative by the image as well, and strided kernels with their padding
    assert least <= taken <= 1.04 * least


def test_bytes_are_counted_exactly():
    n = 1000

    def three_then_one():
        a = memory.torch.zeros(n)
        b = a + 1.0
        c = b * 2.0
        return c

    peak, rest = memory.allocated(three_then_one)
    assert 3 * 4 * n <= peak <= 3 * 4 * n + 100  # the scalars are tensors for a moment
    assert rest == 4 * n


def test_shadows_hold_copies_and_peers_hold_theirs():
    table = memory.solvers("tiny")
    peaks = table.column("copies at peak")
    for label, rest in table.column("at rest").items():
        assert rest is None or 2.0 <= rest <= peaks[label]
    # dopri5 of torchdiffeq: 30 vectors of float64
    assert 50 < peaks["torchdiffeq dopri5"] < 80
    assert peaks["centralflows' scheme: Euler"] < peaks["edge-of-stability's scheme: RK4"]


def test_records_are_counted():
    rows = memory.records("tiny").rows
    assert [row[1] for row in rows] == [201, 401, 601, 801]


def test_an_idle_shadow_evaluates_nothing():
    for row in idle.tables("tiny")[0].rows:
        assert row[6] == 0
        assert abs(row[1]) < 10_000


def test_the_fitted_exponent_is_that_of_the_power_law():
    points = [scaling.Point(n, 1.0, n**1.5, 1.0, 1.0) for n in (10, 100, 1000)]
    assert scaling.exponent(points, lambda p: p.gradient) == pytest.approx(1.5)


def test_scaling_measures_every_size(tmp_path):
    tables = scaling.tables("tiny")
    for table, sizes in zip(tables, (("3,210", "6,442"), ("20", "40")), strict=True):
        assert [row[0] for row in table.rows[:-1]] == list(sizes)
        assert all(math.isfinite(row[1]) and row[1] > 0 for row in table.rows[:-1])
    scaling.draw(tables, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_kinks_judges_only_what_its_references_agree_on():
    bars, errors = [1.0, 1.0, 1.0, 1.0], [0.2, 5.0, 0.8, 5.0]
    assert kinks.judge(bars, errors, [0.1, 0.1, 0.5, 9.0]) == [True, False, None, None]


def test_kinks_says_where_its_references_part():
    row = kinks.Row("paper", 4, None, 0.5, 0.5, 0.75, 28, 820, 2.0, 0.15, math.nan)
    assert kinks.cover(row) == "75% of 28; reference not converged at step 820"
    assert kinks.error_of(row) == "–"
    assert kinks.cover(row._replace(unsure=None, judged=30)) == "75% of 30"
    assert kinks.cover(row._replace(judged=0)) == "reference not converged"


@pytest.mark.slow
def test_kinks_small():
    (table,) = kinks.tables("tiny")
    assert len(table.rows) == 3


def test_every_name_is_a_module_and_every_table_of_the_page_has_its_place():
    text = PAGE.read_text(encoding="utf-8")
    for name in NAMES:
        assert callable(import_module(f"benchmarks.{name}").tables)
    names = [f"{kind} {case}" for kind in ("flow", "eigen") for case in CASES]
    names += [
        "eigen along",
        "eigen referee",
        "product",
        "memory",
        "records",
        "idle",
        "kinks",
        "calibration",
        "calibration batch",
        "ranks",
        "budget",
        "machine",
    ]
    for name in [*names, "scaling parameters", "scaling examples"]:
        assert text.count(f"<!-- table: {name} -->") == 1
    assert text.count("<!-- table:") == text.count("<!-- end -->")


def test_a_table_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table: t -->\nold\n<!-- end -->\nb\n", encoding="utf-8")
    table = Table("t", ["x", "y"], [["one", 0.12345], ["two", None], ["three", 12345]], "Note.")
    write(page, table, "hand")
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert "| one | 0.123 |\n| two | – |\n| three | 12,345 |" in text
    assert text.startswith("a\n<!-- table: t -->\n")
    assert text.endswith("Made by hand.\n\n<!-- end -->\nb\n")
    with pytest.raises(ValueError, match="must hold '<!-- table: u -->'"):
        write(page, table.__class__("u", [], [], ""), "hand")


@pytest.mark.parametrize("module", [calibration, calibration_batch])
def test_calibration_tables_count_their_records_and_bars_that_fail(module):
    (table,) = module.tables("tiny")
    runs = table.rows[0][2]
    assert {row[1] for row in table.rows} == {"float64", "float32"}
    for row in table.rows:
        assert row[3] >= 6 * row[2]
        assert 1.0 < row[6] <= row[7]
        assert 0 <= row[8] <= row[2]
    assert runs >= 1


def test_a_group_says_what_its_worst_run_does():
    def run(cover, ratio, holds):
        return SimpleNamespace(records=10, cover=cover, ratio=ratio, holds=holds)

    runs = [run(1.0, 4.0, True), run(0.5, 20.0, False), run(0.9, 2.0, False)]
    (row,) = calibration.grouped(runs, lambda r: ("all",))
    assert row == ["all", 3, 30, "80.0%", "50.0%", 4.0, 20.0, 2]


def test_ranks_share_the_samples_and_the_counts():
    (table,) = ranks.tables("tiny")
    one, two = table.rows
    assert (one[0], two[0]) == (1, 2)
    assert one[1:3] == two[1:3]
    assert one[3] == 2 * two[3]
    assert one[4] == 0.0 < two[4]
    assert one[5] == pytest.approx(two[5], rel=1e-3)


def test_a_budget_ends_its_windows_with_a_number_and_is_about_kept(monkeypatch):
    monkeypatch.setitem(budget.SECONDS, "tiny", 1.0)
    (table,) = budget.tables("tiny")
    ((asked, taken, steps, windows, gradients, discrepancy, error),) = table.rows
    assert asked == "50%"
    assert 0.0 < float(taken.rstrip("%")) < 200.0
    assert steps >= windows >= 1
    assert gradients > windows
    assert 0.0 < error < discrepancy


def test_a_budget_without_torchvision_is_a_row_that_says_so(monkeypatch):
    monkeypatch.setattr(budget, "resnet18", lambda: None)
    assert budget.measure("quick", 0.1)[1] == "torchvision is not installed"
