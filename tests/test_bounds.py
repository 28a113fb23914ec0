"""Bounds: Theorem 2 against golden values, quadrature, SciPy and a flow known exactly."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from torch_gfshadow.bounds import (
    Assumption,
    Bound,
    BoundValue,
    Theorem2,
    gfshadow_bounds,
    theorem2,
)
from torch_gfshadow.record import exceeded
from torch_gfshadow.testing import make_record

GOLDEN = json.loads((Path(__file__).parent / "golden" / "theorem2.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=[case["id"] for case in GOLDEN])
def test_golden_values_are_reproduced(case):
    curve = theorem2(**case["inputs"])
    tolerance = {"rel": case["tolerance"]["rtol"], "abs": case["tolerance"]["atol"]}
    expected = [-math.inf if value is None else value for value in case["expected"]["log_R"]]
    assert curve.log_R == pytest.approx(expected, **tolerance)
    if "R" in case["expected"]:
        assert pytest.approx(case["expected"]["R"], **tolerance) == curve.R


def random_pieces(seed):
    rng = np.random.default_rng(seed)
    breaks = np.cumsum(rng.uniform(0.05, 1.0, 7))
    return breaks, rng.normal(0, 1.5, 6), rng.uniform(0, 0.3, 6), rng.uniform(0, 0.2)


@pytest.mark.parametrize("seed", range(5))
def test_the_recursion_solves_its_differential_equation(seed):
    breaks, m, delta, start = random_pieces(seed)
    value = start
    for i in range(6):
        value = solve_ivp(
            lambda t, r, i=i: m[i] * r + delta[i],
            (breaks[i], breaks[i + 1]),
            [value],
            rtol=1e-11,
            atol=1e-14,
        ).y[0, -1]
    assert theorem2(breaks, m, delta, start).R[-1] == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_splitting_a_piece_changes_nothing(seed):
    breaks, m, delta, start = random_pieces(seed)
    middle = (breaks[:-1] + breaks[1:]) / 2
    halves = theorem2(np.sort(np.r_[breaks, middle]), np.repeat(m, 2), np.repeat(delta, 2), start)
    assert halves.R[::2] == pytest.approx(theorem2(breaks, m, delta, start).R, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_grows_with_each_of_its_inputs(seed):
    breaks, m, delta, start = random_pieces(seed)
    base = theorem2(breaks, m, delta, start).R
    for larger in (
        theorem2(breaks, m + 0.1, delta, start),
        theorem2(breaks, m, delta + 0.1, start),
        theorem2(breaks, m, delta, start + 0.1),
    ):
        assert all(more >= less for more, less in zip(larger.R, base, strict=True))
        assert larger.R[-1] > base[-1]


@pytest.mark.parametrize("m", [1e-3, 1e-7, 2e-8, 0.9e-8, 1e-13, 0.0, -1e-13, -0.9e-8, -2e-8, -1e-5])
def test_small_rates_lose_no_digits_across_the_switch_to_the_series(m):
    duration = 1.0
    exact = 0.3 * (duration + m / 2 + m**2 / 6 + m**3 / 24)  # δ (e^{m} − 1)/m
    assert theorem2([0, duration], [m], [0.3]).R[1] == pytest.approx(exact, rel=3e-15)


def test_a_huge_factor_and_a_tiny_one_cancel_without_overflow():
    curve = theorem2([0, 1000, 2000], [1.5, -1.5], [0.0, 0.0], 1e-3)
    assert curve.log_R[1] == pytest.approx(1500 + math.log(1e-3))
    assert curve.R[1] == math.inf
    assert curve.R[2] == pytest.approx(1e-3)


def test_an_overflowing_logarithm_is_infinite_and_a_vanishing_one_is_zero():
    assert theorem2([0, 1e200], [1e200], [1.0]).R[-1] == math.inf
    assert theorem2([0, 1e200], [1e200], [0.0]).R == (0.0, 0.0)
    assert theorem2([0, 1e200], [-1e200], [0.0], 1.0).R[-1] == 0.0


def test_strong_contraction_settles_at_defect_over_rate():
    assert theorem2([0, 1e4], [-2.0], [0.6], 5.0).R[-1] == pytest.approx(0.3, rel=1e-14)


def test_one_break_is_the_start_alone():
    assert theorem2([2.0], [], [], 0.25).R == (0.25,)


@pytest.mark.parametrize("h", [np.diag([-0.5, 2.0]), np.diag([0.3, 4.0]), np.diag([-1.0, -0.2])])
def test_the_bound_holds_and_is_no_thousandfold_on_a_quadratic(h):
    """f = ½θᵀHθ: everything is known, m = −λ_min and δ(s) = s‖H²θ_k‖ on step k."""
    step_size, theta = 0.05, np.array([1.0, 0.5])
    start, defects, distances = theta, [], [0.0]
    for k in range(60):
        gradient = h @ theta
        defects.append(step_size * np.linalg.norm(h @ gradient))
        theta = theta - step_size * gradient
        flow = np.exp(-np.diag(h) * step_size * (k + 1)) * start
        distances.append(np.linalg.norm(theta - flow))
    breaks = step_size * np.arange(61)
    bound = np.array(theorem2(breaks, [-h.diagonal().min()] * 60, defects).R)
    assert (bound >= distances).all()
    assert (bound[1:] <= 1000 * np.array(distances[1:])).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"breaks": [0, 1, 1]}, r"breaks must be increasing, got 1.0 followed by 1.0 at index 1"),
        ({"breaks": [0, 2, 1]}, r"breaks must be increasing, got 2.0 followed by 1.0 at index 1"),
        ({"m": [1.0]}, r"m must be one value per piece \(2 for 3 breaks\), got 1 values"),
        ({"delta": [1.0] * 3}, r"delta must be one value per piece \(2 for 3 breaks\), got 3"),
        ({"delta": [0.1, -0.1]}, r"delta\[1\] must be not negative, got -0.1"),
        ({"R0": -1.0}, r"R0 must be not negative, got -1.0"),
        ({"m": [0.0, math.nan]}, r"m\[1\] must be finite, got nan"),
        ({"breaks": [0, 1, math.inf]}, r"breaks\[2\] must be finite, got inf"),
        ({"R0": math.inf}, r"R0\[0\] must be finite, got inf"),
        ({"breaks": []}, r"breaks must be at least one time"),
    ],
)
def test_what_the_theorem_does_not_cover_is_refused(change, message):
    arguments = {"breaks": [0, 1, 2], "m": [0.1, 0.2], "delta": [0.1, 0.1], "R0": 0.0}
    with pytest.raises(ValueError, match=message):
        theorem2(**{**arguments, **change})


# --- values


def test_a_value_is_certified_only_if_every_ingredient_is():
    sure, guess = Assumption("a", "given", True), Assumption("b", "sampled", False)
    assert BoundValue(0.0, (sure, sure)).certified
    assert not BoundValue(0.0, (sure, guess)).certified
    assert not BoundValue(0.0).certified


def test_a_value_knows_its_logarithm_where_it_overflows():
    assert BoundValue(1000.0).value == math.inf
    assert BoundValue(-math.inf).value == 0.0
    assert BoundValue(math.log(2.0)).to_cell() == {
        "of": "discrepancy",
        "value": pytest.approx(2.0),
        "log_value": math.log(2.0),
        "certified": False,
        "kind": "estimated",
        "why": "",
        "status": "ok",
    }


def test_a_cell_compares_the_limit_with_what_was_measured():
    sure = (Assumption("a", "given", True),)
    record = make_record(1, discrepancy=0.5, lambda_min=-2.0)
    cell = BoundValue(math.log(2.0), sure).to_cell(record)
    assert (cell["slack"], cell["tightness"]) == (pytest.approx(1.5), pytest.approx(4.0))
    floor = BoundValue(math.log(6.0), sure, of="lambda_min").to_cell(record)
    assert floor["value"] == pytest.approx(-6.0)
    assert (floor["slack"], floor["tightness"]) == (pytest.approx(4.0), pytest.approx(3.0))
    nothing = BoundValue(math.inf, sure, "why not").to_cell(record)
    assert (nothing["slack"], nothing["tightness"], nothing["kind"]) == (None, None, "failed")
    assert nothing["why"] == "why not"


def test_the_kind_of_a_value_is_that_of_its_weakest_hypothesis():
    sure, guess = Assumption("a", "given", True), Assumption("b", "sampled", False)
    false = Assumption("c", "failed, 3 of 7", certain=False, failed=True)
    assert BoundValue(0.0, (sure,)).kind == "certified"
    assert BoundValue(0.0, (sure, guess)).kind == "estimated"
    assert BoundValue(0.0, (sure, guess, false)).kind == "failed"
    assert BoundValue(0.0, (sure, guess)).why == "b: sampled"
    assert BoundValue(0.0, (sure, guess, false)).why == "c: failed, 3 of 7"


def test_a_measurement_contradicts_a_bound_only_beyond_its_own_error():
    sure = (Assumption("a", "given", True),)
    record = make_record(1, discrepancy=0.5, solver_error=0.1, lambda_min=-2.0)
    for limit, expected in ((0.45, False), (0.39, True)):
        assert exceeded(record, BoundValue(math.log(limit), sure).to_cell(record)) == expected
    for floor, expected in ((2.1, False), (1.5, True)):
        value = BoundValue(math.log(floor), sure, of="lambda_min")
        assert exceeded(record, value.to_cell(record)) == expected
    false = (Assumption("c", "failed", certain=False, failed=True),)
    assert not exceeded(record, BoundValue(-9.0, false).to_cell(record))


# --- along a run


CURVATURES = [-0.7, -0.9, -0.3, -0.5]


def rows():
    return [make_record(k, lambda_min=value) for k, value in enumerate(CURVATURES)]


def values_of(records):
    bound = Theorem2()
    return [bound.update(record) for record in records]


def test_along_a_run_it_is_the_theorem_with_the_worse_end_of_each_step():
    values = [value.value for value in values_of(rows())]
    m = [0.9 + 1e-3, 0.9 + 1e-3, 0.5 + 1e-3]
    expected = theorem2([0.0, 0.1, 0.2, 0.3], m, [0.02] * 3).R
    assert values == pytest.approx([0.0, math.inf, *expected[2:]], rel=1e-12)


def test_along_a_run_each_defect_belongs_to_the_step_before_its_record():
    records = [make_record(k, local_defect=0.1 * k, lambda_min_residual=None) for k in range(5)]
    value = values_of(records)[-1].value
    # The defects of records 2, 3 and 4 are those of steps 1, 2 and 3; step 4 borrows the last.
    expected = theorem2([0.0, 0.1, 0.2, 0.3, 0.4], [0.7] * 4, [0.2, 0.3, 0.4, 0.4]).R[-1]
    assert value == pytest.approx(expected, rel=1e-12)


def test_along_a_run_a_step_of_size_zero_changes_nothing():
    records = [make_record(k, step_size=0.0 if k == 3 else 0.1) for k in range(4)]
    values = values_of(records)
    assert values[3].value == pytest.approx(values[2].value)


def test_along_a_run_it_is_never_certified():
    assert not any(value.certified for value in values_of(rows()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"local_defect": None}, "step 2 has no local_defect"),
        ({"local_defect": math.nan}, "step 2 has no local_defect"),
        ({"step": 1}, "step 1 follows step 1"),
        ({"mode": "batch"}, "mode batch follows a flow that changes with every batch"),
    ],
)
def test_after_a_gap_there_is_no_bound_any_more_and_the_status_says_why(change, reason):
    records = [make_record(0), make_record(1), make_record(**{"step": 2, **change}), make_record(3)]
    values = values_of(records)
    assert [value.status for value in values[:2]] == [
        "ok",
        "No bound yet: it begins at the second step.",
    ]
    for value in values[2:]:
        assert value.value == math.inf
        assert value.status == f"No bound: {reason}."


def sparse(probes, records):
    """make_record's run with λ_min at some steps and records at some."""
    return [
        make_record(
            k,
            lambda_min=-0.5 - 0.1 * k if k in probes else None,
            local_defect=0.1 + 0.01 * k if k > 1 else None,
        )
        for k in records
    ]


def test_between_probes_m_is_the_larger_of_the_two_ends_and_there_is_no_value():
    values = values_of(sparse({0, 3, 4, 6}, range(7)))
    assert [math.isfinite(v.value) for v in values] == [1, 0, 0, 1, 1, 0, 1]
    assert values[2].status == "No value between probes: λ_min is not known here."
    m = [0.801] * 3 + [0.901] + [1.101] * 2
    delta = [0.12, 0.13, 0.14, 0.15, 0.16, 0.16]  # δ of a step comes with the record after it
    expected = theorem2([0.1 * k for k in range(7)], m, delta).R
    assert values[6].value == pytest.approx(expected[6], rel=1e-12)
    assert "up to 3 steps apart" in values[6].why


def test_between_records_the_defect_is_the_larger_of_the_two_ends():
    values = values_of(sparse({0, 5, 10}, [0, 5, 10]))
    expected = theorem2([0.0, 0.5, 1.0], [1.001, 1.501], [0.15, 0.2]).R
    assert [v.value for v in values] == pytest.approx(expected, rel=1e-12)


def test_a_first_step_alone_takes_its_defect_from_the_next_record():
    values = values_of(sparse({0, 1, 8}, [0, 1, 8]))
    assert values[1].value == math.inf
    expected = theorem2([0.0, 0.1, 0.8], [0.601, 1.301], [0.18, 0.18]).R
    assert values[2].value == pytest.approx(expected[2], rel=1e-12)


def test_no_step_size_is_no_gap_because_the_clock_knows_it():
    whole = values_of([make_record(k) for k in range(4)])
    without = values_of([make_record(k, step_size=None) for k in range(4)])
    assert without[3].value == pytest.approx(whole[3].value, rel=1e-12)


def test_a_run_that_begins_without_curvature_has_no_bound():
    (value,) = values_of([make_record(0, lambda_min=None)])
    assert value.status == "No bound: step 0 has no lambda_min; probe the first record."


def test_the_built_in_is_registered_and_keeps_the_protocol():
    (spec,) = (spec for spec in gfshadow_bounds() if spec.name == "theorem2")
    assert isinstance(spec.factory(), Bound)
    assert "Elkabetz" in spec.source
