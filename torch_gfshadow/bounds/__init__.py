"""Bounds on the discrepancy: base.py says what one is, then one file per theorem."""

from collections.abc import Sequence

from torch_gfshadow.bounds.base import Assumption as Assumption
from torch_gfshadow.bounds.base import Bound as Bound
from torch_gfshadow.bounds.base import BoundValue as BoundValue
from torch_gfshadow.bounds.base import Evaluation as Evaluation
from torch_gfshadow.bounds.theorem2 import RadiusCurve as RadiusCurve
from torch_gfshadow.bounds.theorem2 import Theorem2 as Theorem2
from torch_gfshadow.bounds.theorem2 import theorem2 as theorem2
from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.specs import BoundSpec


@hookimpl
def gfshadow_bounds() -> Sequence[BoundSpec]:
    """Register the built-in bounds."""
    return [
        BoundSpec(
            name="theorem2",
            factory=Theorem2,
            summary="Euler's error from the curvature and the defect along the run (estimate)",
            source="Elkabetz & Cohen 2021, Theorem 2",
        )
    ]
