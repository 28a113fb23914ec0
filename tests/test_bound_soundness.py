"""Every scalar bound against the truth on thousands of random cases: no violation, ever."""

import re
from pathlib import Path

import numpy as np
import pytest

from torch_gfshadow.experiments import soundness
from torch_gfshadow.experiments.soundness import STUDIES, Outcome, run

QUICK, SLOW = 2_000, 100_000


@pytest.mark.parametrize("name", STUDIES)
def test_the_bound_holds_on_2000_random_cases(name):
    # those of networks have 2,000 cases of their own, of every kind, in test_homogeneous_property
    n_cases = 300 if name.startswith(("nonlinear", "convolution")) else QUICK
    found = run(name, n_cases, seed=1)
    assert found.n_cases >= n_cases
    assert found.n_violations == 0, found
    assert found.smallest <= found.median <= found.largest


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_the_bound_holds_on_100000_random_cases(name):
    found = run(name, SLOW, seed=2)
    assert found.n_cases >= SLOW
    assert found.n_violations == 0, found


def test_a_violation_is_counted(monkeypatch):
    def study(rng, n):
        return np.array([2.0, 1.0, 1.0 - 1e-12, 0.5, np.nan])

    monkeypatch.setitem(soundness.STUDIES, "broken", study)
    assert run("broken", 5).n_violations == 2


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("theorem2", 5), ("theorem3, half step", 10), ("lemma2, blocks", 2),
        ("proposition2, sharper", 10), ("tight_step", 3),
    ],
)  # fmt: skip
def test_the_sharp_ones_are_sharp_in_the_median(name, most):
    assert run(name, 300, seed=3).median < most


def test_a_bound_that_is_too_small_is_found():
    """The studies see a factor of two: one that halves the bound must fail."""
    for name in ("lemma2, eq13", "lemma2, blocks", "proposition2, sharper", "theorem2"):
        ratios = STUDIES[name](np.random.default_rng(0), 400)
        assert (ratios / 2.05 < 1).any(), name


def test_the_page_on_theory_has_a_row_for_every_study():
    page = (Path(__file__).parents[1] / "docs" / "theory.md").read_text()
    rows = re.findall(r"^\| ([^|]+?) \| [\d,]+ \| (\d+) \|", page, flags=re.M)
    assert [name for name, _ in rows] == list(STUDIES)
    assert {violations for _, violations in rows} == {"0"}


def test_outcomes_are_plain_numbers():
    assert Outcome(1, 0, 1.0, 1.0, 1.0).n_cases == 1
