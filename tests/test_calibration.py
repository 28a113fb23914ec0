"""solver_error on a part of the calibration suite, as benchmarks/calibration.py measures it."""

import statistics
import sys

import pytest
import torch
from pages import ROOT


@pytest.fixture(scope="module")
def calibration():
    sys.path.insert(0, str(ROOT))
    from benchmarks import calibration

    return calibration


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_error_bar_holds_on_the_small_suite(calibration, dtype):
    cases = [case for case in calibration.SUITE if case.small]
    assert {case.family for case in cases} == {"quadratic", "deep linear", "tanh", "relu", "conv"}
    results = [case._replace(steps=case.steps // 2).result(0, dtype) for case in cases]
    assert sum(r.records for r in results) >= 600
    assert [r for r in results if r.cover < 0.95] == []
    assert [r.case for r in results if not r.holds] == []
    assert statistics.median(r.ratio for r in results) >= 1.0


def test_a_bar_that_is_too_low_is_seen_as_such(calibration):
    (case,) = (c for c in calibration.SUITE if (c.family, c.name) == ("deep linear", "escape"))
    problem = case.build(0)
    times = [case.step_size * k for k in range(1, 21)]
    wrong = [exact + 1.0 for exact in calibration.reference(problem, times)]
    result = calibration.measure(case._replace(steps=20), problem, wrong, 0, "auto")
    assert result.cover == 0.0
    assert not result.holds
