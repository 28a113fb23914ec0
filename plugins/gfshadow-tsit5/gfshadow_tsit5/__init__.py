"""Tsitouras' 5(4) pair as a solver: ``attach(..., solver="tsit5")``."""

from __future__ import annotations

from typing import Any

from torch_gfshadow import hookimpl
from torch_gfshadow.specs import SolverSpec

__version__ = "0.1.0"


def _solver() -> Any:
    # Imported on use: every run that has this package installed loads this module.
    from gfshadow_tsit5.solver import Tsit5

    return Tsit5()


@hookimpl
def gfshadow_solvers() -> list[SolverSpec]:
    """Register the solver."""
    return [
        SolverSpec(
            name="tsit5",
            factory=_solver,
            summary="Tsitouras 5(4), 6 evaluations a step, free fourth-order dense output",
            source="Tsitouras 2011",
        )
    ]
