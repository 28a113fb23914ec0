"""Solvers: how the gradient flow is integrated. Read ``base`` for the interface first."""

from __future__ import annotations

from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.solvers.auto import Auto
from torch_gfshadow.solvers.base import Field, Node, SolverConfig, Stepper
from torch_gfshadow.solvers.doubled import Doubled
from torch_gfshadow.solvers.embedded import Bosh3, Dopri5, Dopri8
from torch_gfshadow.solvers.in_torchdiffeq import register_with_torchdiffeq
from torch_gfshadow.solvers.low_adams import Adams2
from torch_gfshadow.solvers.low_storage import RKC2
from torch_gfshadow.solvers.storage import is_large
from torch_gfshadow.specs import SolverSpec

__all__ = [
    "RKC2",
    "Adams2",
    "Auto",
    "Bosh3",
    "Dopri5",
    "Dopri8",
    "Doubled",
    "Field",
    "Node",
    "SolverConfig",
    "Stepper",
    "gfshadow_solvers",
    "is_large",
    "register_with_torchdiffeq",
]


@hookimpl
def gfshadow_solvers() -> list[SolverSpec]:
    """Register the built-in solvers."""
    return [
        SolverSpec(
            name="auto",
            factory=Auto,
            summary="the run's own gradients where they change little; dopri5, rkc2, adams2 alone",
        ),
        SolverSpec(
            name="bosh3",
            factory=Bosh3,
            summary="Bogacki–Shampine 3(2), 3 evaluations a step",
            source="Bogacki & Shampine 1989, torchdiffeq",
        ),
        SolverSpec(
            name="dopri5",
            factory=Dopri5,
            summary="Dormand–Prince 5(4), 6 evaluations a step",
            source="Dormand & Prince 1980, torchdiffeq",
        ),
        SolverSpec(
            name="dopri8",
            factory=Dopri8,
            summary="Dormand–Prince 8(7), 13 evaluations a step",
            source="Prince & Dormand 1981, torchdiffeq",
        ),
        SolverSpec(
            name="rkc2",
            factory=RKC2,
            summary="stabilised, second order: evaluations grow like √(h·λ_max), for stiff flows",
            source="Sommeijer, Shampine & Verwer 1998",
        ),
        SolverSpec(
            name="doubled",
            factory=Doubled,
            summary="steps h and 2h side by side, of order 5 or 3: for flows with memory",
            source="Dormand & Prince 1980; Bogacki & Shampine 1989",
        ),
        SolverSpec(
            name="adams2",
            factory=Adams2,
            summary="two-step Adams–Bashforth stepped by the jump rate, 1 evaluation a step",
            source="derived; see solvers/adams.py",
        ),
    ]
