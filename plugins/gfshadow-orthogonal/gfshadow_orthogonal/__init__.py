"""``scaled_orthogonal`` and ``identity_plus_noise``, for deep linear and residual networks."""

from __future__ import annotations

from typing import Any

from torch_gfshadow import hookimpl
from torch_gfshadow.specs import InitSpec

__version__ = "0.1.0"


# Imported on use: every run that has this package installed loads this module.
def _scaled_orthogonal(scale: float | str = 1.0) -> Any:
    from gfshadow_orthogonal.inits import ScaledOrthogonal

    return ScaledOrthogonal(scale)


def _identity_plus_noise(noise: float | str = 0.01) -> Any:
    from gfshadow_orthogonal.inits import IdentityPlusNoise

    return IdentityPlusNoise(noise)


@hookimpl
def gfshadow_inits() -> list[InitSpec]:
    """Register both initialisers."""
    return [
        InitSpec(
            name="scaled_orthogonal",
            factory=_scaled_orthogonal,
            summary="a random orthogonal matrix times a factor (argument: scale, default 1)",
            source="Saxe, McClelland & Ganguli 2014",
        ),
        InitSpec(
            name="identity_plus_noise",
            factory=_identity_plus_noise,
            summary="the identity plus small normal noise (argument: noise, default 0.01)",
            source="Hardt & Ma 2017; Bartlett, Helmbold & Long 2018",
        ),
    ]
