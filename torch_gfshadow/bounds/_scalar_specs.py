"""The results on given numbers as they are registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_gfshadow.bounds.approximate_balance import approximate_balance
from torch_gfshadow.bounds.corollary1 import corollary1
from torch_gfshadow.bounds.corollary2 import corollary2
from torch_gfshadow.bounds.exact_dynamics import exact_dynamics
from torch_gfshadow.bounds.procedure1 import procedure1
from torch_gfshadow.bounds.proposition2 import proposition2
from torch_gfshadow.bounds.proposition3 import equation17, equation18, proposition3
from torch_gfshadow.bounds.theorem2 import evaluate as evaluate_theorem2
from torch_gfshadow.bounds.theorem2_live import Theorem2
from torch_gfshadow.bounds.theorem3 import theorem3
from torch_gfshadow.bounds.theorem4 import equation19, equation20, theorem4
from torch_gfshadow.bounds.tight_step import tight_step
from torch_gfshadow.bounds.weight_decay import weight_decay
from torch_gfshadow.bounds.worst_case import necessary_step_size, worst_case
from torch_gfshadow.specs import BoundSpec

_PAPER = "Elkabetz & Cohen 2021"


def _spec(
    evaluate: Callable[..., Any], summary: str, source: str = "", **parts: Callable[..., Any]
) -> BoundSpec:
    """Return the spec of a result that is named after its function and is no limit along a run."""
    return BoundSpec(
        name=evaluate.__name__,
        factory=evaluate,
        evaluate=evaluate,
        summary=summary,
        source=source and f"{_PAPER}, {source}",
        live=False,
        parts=parts,
    )


SPECS = (
    BoundSpec(
        name="theorem2",
        factory=Theorem2,
        evaluate=evaluate_theorem2,
        summary="Euler's error from the curvature and the defect along the run (estimate)",
        source=f"{_PAPER}, Theorem 2",
    ),
    _spec(
        theorem3,
        "step size that keeps gradient descent within ε of the flow",
        "Theorem 3 and Equation 7",
        eq7=theorem3,
    ),
    _spec(
        weight_decay,
        "the same for a loss with weight decay",
        "Theorem 3; the shift is derived",
    ),
    _spec(
        corollary1,
        "the same for a globally smooth function, m > 0 corrected",
        "Corollary 1",
        cor1=corollary1,
    ),
    _spec(
        proposition2,
        "λ_min of a deep linear network along a flow from near zero, and sharper",
        "Proposition 2 and Equation 14",
        prop2=proposition2,
        eq14=proposition2,
    ),
    _spec(
        proposition3,
        "time to the minimum, and the curvature on the way, from a balanced start",
        "Proposition 3",
        eq17=equation17,
        eq18=equation18,
    ),
    _spec(
        theorem4,
        "step size and number of steps with which gradient descent converges",
        "Theorem 4",
        eq19=equation19,
        eq20=equation20,
    ),
    _spec(
        corollary2,
        "the same from a random balanced start",
        "Corollary 2",
    ),
    _spec(
        approximate_balance,
        "the same from a nearly balanced start",
        "Remark 1 after Theorem 4, made explicit here",
    ),
    _spec(
        procedure1,
        "balanced weights with a given product",
        "Procedure 1",
    ),
    _spec(
        exact_dynamics,
        "the flow of Proposition 3 in closed form, with its λ_min",
    ),
    _spec(
        tight_step,
        "Theorem 4 with the exact flow: a step size one can run",
    ),
    _spec(
        worst_case,
        "a ridge on which gradient descent leaves the flow exponentially",
        ridge=worst_case,
        necessary_step_size=necessary_step_size,
    ),
)
