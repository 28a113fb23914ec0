"""A bound for globally smooth objectives: ``attach(..., bounds=["lipschitz:<beta>"])``."""

from __future__ import annotations

from typing import Any

from torch_gfshadow import hookimpl
from torch_gfshadow.specs import BoundSpec

__version__ = "0.1.0"


def _bound(smoothness: float | str) -> Any:
    # Imported on use: every run that has this package installed loads this module.
    from gfshadow_lipschitz.bound import LipschitzBound

    return LipschitzBound(smoothness)


@hookimpl
def gfshadow_bounds() -> list[BoundSpec]:
    """Register the bound ``lipschitz:<beta>``."""
    return [
        BoundSpec(
            name="lipschitz",
            factory=_bound,
            summary="certified, from a global bound on ‖∇²f‖ (argument: that bound)",
            source="Elkabetz & Cohen 2021, Theorem 2 with Corollary 1's hypotheses",
        )
    ]
