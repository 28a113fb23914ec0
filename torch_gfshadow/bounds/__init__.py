"""Bounds on the discrepancy: base.py says what one is, then one file per theorem."""

from collections.abc import Sequence

from torch_gfshadow.bounds._deep_linear_specs import SPECS as _DEEP_LINEAR
from torch_gfshadow.bounds.base import Assumption as Assumption
from torch_gfshadow.bounds.base import Bound as Bound
from torch_gfshadow.bounds.base import BoundValue as BoundValue
from torch_gfshadow.bounds.base import Evaluation as Evaluation
from torch_gfshadow.bounds.corollary1 import corollary1 as corollary1
from torch_gfshadow.bounds.lemma1 import lemma1 as lemma1
from torch_gfshadow.bounds.lemma2 import LambdaMinBounds as LambdaMinBounds
from torch_gfshadow.bounds.lemma2 import lemma2 as lemma2
from torch_gfshadow.bounds.procedure1 import procedure1 as procedure1
from torch_gfshadow.bounds.proposition1 import Construction as Construction
from torch_gfshadow.bounds.proposition1 import proposition1 as proposition1
from torch_gfshadow.bounds.proposition2 import proposition2 as proposition2
from torch_gfshadow.bounds.proposition3 import equation17 as equation17
from torch_gfshadow.bounds.proposition3 import equation18 as equation18
from torch_gfshadow.bounds.proposition3 import proposition3 as proposition3
from torch_gfshadow.bounds.theorem2 import RadiusCurve as RadiusCurve
from torch_gfshadow.bounds.theorem2 import Theorem2 as Theorem2
from torch_gfshadow.bounds.theorem2 import evaluate as _evaluate_theorem2
from torch_gfshadow.bounds.theorem2 import theorem2 as theorem2
from torch_gfshadow.bounds.theorem3 import theorem3 as theorem3
from torch_gfshadow.bounds.theorem4 import equation19 as equation19
from torch_gfshadow.bounds.theorem4 import equation20 as equation20
from torch_gfshadow.bounds.theorem4 import theorem4 as theorem4
from torch_gfshadow.bounds.worst_case import worst_case as worst_case
from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.specs import BoundSpec

_PAPER = "Elkabetz & Cohen 2021"


@hookimpl
def gfshadow_bounds() -> Sequence[BoundSpec]:
    """Register the built-in bounds."""
    return [
        BoundSpec(
            name="theorem2",
            factory=Theorem2,
            evaluate=_evaluate_theorem2,
            summary="Euler's error from the curvature and the defect along the run (estimate)",
            source=f"{_PAPER}, Theorem 2",
        ),
        BoundSpec(
            name="theorem3",
            factory=theorem3,
            evaluate=theorem3,
            parts={"eq7": theorem3},
            live=False,
            summary="step size that keeps gradient descent within ε of the flow",
            source=f"{_PAPER}, Theorem 3 and Equation 7",
        ),
        BoundSpec(
            name="corollary1",
            factory=corollary1,
            evaluate=corollary1,
            live=False,
            summary="the same for a globally smooth function, m > 0 corrected",
            source=f"{_PAPER}, Corollary 1",
        ),
        BoundSpec(
            name="proposition2",
            factory=proposition2,
            evaluate=proposition2,
            live=False,
            summary="λ_min of a deep linear network along a flow from near zero",
            source=f"{_PAPER}, Proposition 2 and Equation 14",
        ),
        BoundSpec(
            name="proposition3",
            factory=proposition3,
            evaluate=proposition3,
            parts={"eq17": equation17, "eq18": equation18},
            live=False,
            summary="time to the minimum, and the curvature on the way, from a balanced start",
            source=f"{_PAPER}, Proposition 3",
        ),
        BoundSpec(
            name="theorem4",
            factory=theorem4,
            evaluate=theorem4,
            parts={"eq19": equation19, "eq20": equation20},
            live=False,
            summary="step size and number of steps with which gradient descent converges",
            source=f"{_PAPER}, Theorem 4",
        ),
        BoundSpec(
            name="procedure1",
            factory=procedure1,
            evaluate=procedure1,
            live=False,
            summary="balanced weights with a given product",
            source=f"{_PAPER}, Procedure 1",
        ),
        BoundSpec(
            name="worst_case",
            factory=worst_case,
            evaluate=worst_case,
            live=False,
            summary="a ridge on which gradient descent leaves the flow exponentially",
        ),
        *_DEEP_LINEAR,
    ]
