"""solver_error in mode batch, on a part of the suite of benchmarks/calibration_batch.py."""

import itertools
import statistics
import sys

import pytest
import torch
from pages import ROOT


@pytest.fixture(scope="module")
def suite():
    sys.path.insert(0, str(ROOT))
    from benchmarks import calibration_batch

    return calibration_batch


def test_the_bar_covers_and_is_no_guess_from_batch_to_batch(suite):
    cases = [case._replace(steps=20) for case in suite.SUITE if case.small]
    dtypes = itertools.cycle([torch.float64, torch.float32])
    results = [suite.run(case, 0, dtype, 20) for case, dtype in zip(cases, dtypes, strict=False)]
    assert [r for r in results if not r.holds] == []
    assert all(r.ratio >= 1.0 for r in results)
    # an audit and four more wherever that resolves the discrepancy; never an endless chase
    assert 4.5 < min(r.gradients for r in results) < 5.5
    assert statistics.median(r.gradients for r in results) < 10
    assert max(r.gradients for r in results) <= 30


def test_a_bar_that_is_too_low_is_seen_as_such(suite, monkeypatch):
    case = next(case for case in suite.SUITE if case.name == "tanh, fast")
    monkeypatch.setattr(
        "torch_gfshadow.piecewise.PiecewiseFlow.error", property(lambda self: 1e-12)
    )
    assert suite.run(case._replace(steps=5), 0, torch.float64).cover == 0.0


def test_the_references_across_kinks_are_fine_enough(suite):
    case = next(case for case in suite.SUITE if case.name == "relu, deep")
    rough, fine = (suite.run(case._replace(steps=15), 0, torch.float64, n) for n in (20, 60))
    assert rough.ratio == pytest.approx(fine.ratio, rel=0.3)
