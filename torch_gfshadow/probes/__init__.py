"""Probes: measurements at the iterate. base.py says what one is, then one file per member."""

from collections.abc import Sequence

from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.probes.balancedness import Balancedness as Balancedness
from torch_gfshadow.probes.base import Point as Point
from torch_gfshadow.probes.base import Probe as Probe
from torch_gfshadow.probes.gradient_alignment import GradientAlignment as GradientAlignment
from torch_gfshadow.probes.gradient_norm import GradientNorm as GradientNorm
from torch_gfshadow.probes.lambda_max import LambdaMax as LambdaMax
from torch_gfshadow.probes.lambda_min import LambdaMin as LambdaMin
from torch_gfshadow.probes.parameter_norm import ParameterNorm as ParameterNorm
from torch_gfshadow.probes.slq import SLQ as SLQ
from torch_gfshadow.probes.trace import Trace as Trace
from torch_gfshadow.specs import ProbeSpec


@hookimpl
def gfshadow_probes() -> Sequence[ProbeSpec]:
    """Register the built-in probes."""
    return [
        ProbeSpec(
            name="lambda_min",
            factory=LambdaMin,
            summary="smallest Hessian eigenvalue with residual and lower bound (argument: tol)",
        ),
        ProbeSpec(
            name="lambda_max",
            factory=LambdaMax,
            summary="largest Hessian eigenvalue with residual, and η·λ_max (argument: tol)",
        ),
        ProbeSpec(
            name="gradient_norm",
            factory=GradientNorm,
            summary="norm of the gradient at the iterate itself",
        ),
        ProbeSpec(
            name="gradient_alignment",
            factory=GradientAlignment,
            summary="cosines of the gradient with the extreme eigenvectors (argument: tol)",
        ),
        ProbeSpec(
            name="parameter_norm",
            factory=ParameterNorm,
            summary="norm of the parameters",
        ),
        ProbeSpec(
            name="trace",
            factory=Trace,
            summary="trace of the Hessian with its standard error (argument: samples)",
            source="Hutchinson 1990",
        ),
        ProbeSpec(
            name="balancedness",
            factory=Balancedness,
            summary="how balanced neighbouring layers are, and whether the flow conserves it",
            source="Elkabetz & Cohen 2021, Section 4",
        ),
    ]
