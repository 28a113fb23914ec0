"""Bounds against the truth on random cases: do they hold, and how tight are they?

A study draws cases, evaluates a bound and what it bounds, and returns bound / truth for each: at
least 1 where the bound holds. The tests ask for no violation, ``benchmarks/bound_tightness.py``
prints the medians.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from torch_gfshadow.experiments.soundness import (
    balanced,
    closed_forms,
    homogeneous,
    networks,
    tubes,
)
from torch_gfshadow.experiments.soundness.closed_forms import Array

Study = Callable[[np.random.Generator, int], Array]

STUDIES: Mapping[str, Study] = {
    "theorem2": closed_forms.theorem2_radius,
    "theorem3": closed_forms.theorem3_step,
    "theorem3, half step": closed_forms.theorem3_half_step,
    "corollary1": closed_forms.corollary1_step,
    "weight_decay": closed_forms.weight_decay_step,
    "lemma2, eq13": networks.equation13,
    "lemma2, blocks": networks.blocks,
    "nonlinear": homogeneous.nonlinear_simple,
    "nonlinear, blocks": homogeneous.nonlinear_tight,
    "convolution": homogeneous.convolution_simple,
    "convolution, κ": homogeneous.convolution_kappa,
    "convolution, blocks": homogeneous.convolution_tight,
    "tube, mode A": partial(tubes.by_mode, mode="A"),
    "tube, mode B": partial(tubes.by_mode, mode="B"),
    "tube, mode C": partial(tubes.by_mode, mode="C"),
    "proposition2, eq14": networks.equation14,
    "proposition2, sharper": networks.equation14_sharper,
    "proposition3, eq17": balanced.equation17_time,
    "proposition3, eq18": balanced.equation18_integral,
    "theorem4, eq19": balanced.equation19_step,
    "theorem4, eq20": balanced.equation20_steps,
    "approximate_balance": balanced.nearly_balanced_step,
    "tight_step": balanced.tight_step_loss,
}
"""Bound → study; a second number on a name says which of its statements."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a study found.

    Attributes:
        n_cases: Cases compared.
        n_violations: Cases with bound < truth, beyond a rounding of 1e-9.
        smallest: Smallest bound / truth.
        median: Its median.
        largest: Its largest.
    """

    n_cases: int
    n_violations: int
    smallest: float
    median: float
    largest: float


def run(name: str, n_cases: int, seed: int = 0) -> Outcome:
    """Run one study on at least ``n_cases`` random cases."""
    ratios = STUDIES[name](np.random.default_rng(seed), n_cases)
    return Outcome(
        n_cases=len(ratios),
        n_violations=int((~(ratios >= 1.0 - 1e-9)).sum()),
        smallest=float(ratios.min()),
        median=float(np.median(ratios)),
        largest=float(ratios.max()),
    )
