"""Initialisers: base.py says what one is and holds the near-zero family; balanced.py is exact."""

from collections.abc import Sequence
from functools import partial

from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.inits.balanced import BalancedInit as BalancedInit
from torch_gfshadow.inits.balanced import balanced_ as balanced_
from torch_gfshadow.inits.balanced import imbalance as imbalance
from torch_gfshadow.inits.base import Init as Init
from torch_gfshadow.inits.base import ScaledInit as ScaledInit
from torch_gfshadow.inits.base import scaled_kaiming_uniform_ as scaled_kaiming_uniform_
from torch_gfshadow.inits.base import scaled_normal_ as scaled_normal_
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
        InitSpec(
            name="scaled_normal",
            factory=partial(ScaledInit, scaled_normal_),
            summary="Gaussian of deviation factor/√fan_in (default factor 0.1)",
        ),
        InitSpec(
            name="balanced",
            factory=BalancedInit,
            summary="balanced linear layers with a random small product (argument: its norm)",
            source="Elkabetz & Cohen 2021, Procedure 1 and Corollary 2",
        ),
    ]
