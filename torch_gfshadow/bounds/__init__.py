"""Bounds on the discrepancy: base.py says what one is, then one file per theorem."""

from collections.abc import Sequence

from torch_gfshadow.bounds._deep_linear_specs import SPECS as _DEEP_LINEAR
from torch_gfshadow.bounds._homogeneous_specs import SPECS as _HOMOGENEOUS
from torch_gfshadow.bounds._losses import Loss as Loss
from torch_gfshadow.bounds._losses import Square as Square
from torch_gfshadow.bounds._losses import loss_of as loss_of
from torch_gfshadow.bounds._scalar_specs import SPECS as _SCALAR
from torch_gfshadow.bounds._scores import CrossEntropy as CrossEntropy
from torch_gfshadow.bounds._scores import Logistic as Logistic
from torch_gfshadow.bounds._tube import TubeStep as TubeStep
from torch_gfshadow.bounds._tube_step import tube_step as tube_step
from torch_gfshadow.bounds.approximate_balance import approximate_balance as approximate_balance
from torch_gfshadow.bounds.base import Assumption as Assumption
from torch_gfshadow.bounds.base import Bound as Bound
from torch_gfshadow.bounds.base import BoundValue as BoundValue
from torch_gfshadow.bounds.base import Evaluation as Evaluation
from torch_gfshadow.bounds.convolution import Convolution as Convolution
from torch_gfshadow.bounds.corollary1 import corollary1 as corollary1
from torch_gfshadow.bounds.corollary2 import corollary2 as corollary2
from torch_gfshadow.bounds.exact_dynamics import exact_dynamics as exact_dynamics
from torch_gfshadow.bounds.lemma1 import lemma1 as lemma1
from torch_gfshadow.bounds.lemma2 import LambdaMinBounds as LambdaMinBounds
from torch_gfshadow.bounds.lemma2 import lemma2 as lemma2
from torch_gfshadow.bounds.lemma2_live import Lemma2 as Lemma2
from torch_gfshadow.bounds.nonlinear import Nonlinear as Nonlinear
from torch_gfshadow.bounds.procedure1 import procedure1 as procedure1
from torch_gfshadow.bounds.proposition1 import Construction as Construction
from torch_gfshadow.bounds.proposition1 import proposition1 as proposition1
from torch_gfshadow.bounds.proposition2 import proposition2 as proposition2
from torch_gfshadow.bounds.proposition3 import equation17 as equation17
from torch_gfshadow.bounds.proposition3 import equation18 as equation18
from torch_gfshadow.bounds.proposition3 import proposition3 as proposition3
from torch_gfshadow.bounds.reference_tube import ReferenceTube as ReferenceTube
from torch_gfshadow.bounds.theorem2 import RadiusCurve as RadiusCurve
from torch_gfshadow.bounds.theorem2 import theorem2 as theorem2
from torch_gfshadow.bounds.theorem2_live import Theorem2 as Theorem2
from torch_gfshadow.bounds.theorem3 import theorem3 as theorem3
from torch_gfshadow.bounds.theorem4 import equation19 as equation19
from torch_gfshadow.bounds.theorem4 import equation20 as equation20
from torch_gfshadow.bounds.theorem4 import theorem4 as theorem4
from torch_gfshadow.bounds.tight_step import tight_step as tight_step
from torch_gfshadow.bounds.tube import Tube as Tube
from torch_gfshadow.bounds.tube_live import LiveTube as LiveTube
from torch_gfshadow.bounds.view import View as View
from torch_gfshadow.bounds.weight_decay import weight_decay as weight_decay
from torch_gfshadow.bounds.worst_case import worst_case as worst_case
from torch_gfshadow.errors import AssumptionError as AssumptionError
from torch_gfshadow.hookspecs import hookimpl
from torch_gfshadow.specs import BoundSpec


@hookimpl
def gfshadow_bounds() -> Sequence[BoundSpec]:
    """Register the built-in bounds."""
    return [*_SCALAR, *_DEEP_LINEAR, *_HOMOGENEOUS]
