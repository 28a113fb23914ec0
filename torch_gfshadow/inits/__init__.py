"""Initialisers: base.py says what one is and holds the near-zero family."""

from collections.abc import Sequence
from functools import partial

from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.inits.base import Init as Init
from torch_gfshadow.inits.base import ScaledInit as ScaledInit
from torch_gfshadow.inits.base import scaled_kaiming_uniform_ as scaled_kaiming_uniform_
from torch_gfshadow.inits.base import scaled_xavier_uniform_ as scaled_xavier_uniform_
from torch_gfshadow.specs import InitSpec


@hookimpl
def gfshadow_inits() -> Sequence[InitSpec]:
    """Register the built-in initialisers."""
    return [
        InitSpec(
            name="scaled_xavier_uniform",
            factory=partial(ScaledInit, scaled_xavier_uniform_),
            summary="Xavier's uniform distribution times a small factor (default 0.1)",
            source="Glorot & Bengio 2010",
        ),
        InitSpec(
            name="scaled_kaiming_uniform",
            factory=partial(ScaledInit, scaled_kaiming_uniform_),
            summary="Kaiming's uniform distribution times a small factor (default 0.1)",
            source="He et al. 2015",
        ),
    ]
