"""λ_min of a fully connected network with activations of two slopes, from below.

With slopes a for z < 0 and 1 for z ≥ 0, w_j = ‖W_j‖ and a loss ℓ convex in the output::

    λ_min ≥ −(n−1) max(1, |a|)^{n−1} (1/S) Σ_i ‖∇ℓ_i‖ ‖x_i‖ max_{|J|=n−2} Π_{j∈J} w_j      (rhs)

and tighter, −λ_max(C), with C_jj' the product of the norms of the backpropagated signals and of
the layer inputs, stacked over the samples (rhs_C_im2col). Both hold at a point: wherever no
pre-activation is zero, that is almost everywhere. They are no certificate along a curve, because
a kink between two points can be concave, with curvature −∞.

Source: Elkabetz & Cohen 2021, the non-linear version of Lemma 2; the second form is derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch_gfshadow.bounds import _homogeneous as shared
from torch_gfshadow.bounds import _homogeneous_inputs as given
from torch_gfshadow.bounds._floors import Floor, shares_weights
from torch_gfshadow.bounds._losses import loss_name
from torch_gfshadow.bounds.base import Assumption, Evaluation
from torch_gfshadow.errors import AssumptionError, must
from torch_gfshadow.network import NetworkPoint
from torch_gfshadow.network.layers import Dense


def evaluate(
    Ws: Sequence[Any],  # noqa: N803 - the key in the shared format
    X: Any,  # noqa: N803
    Y: Any,  # noqa: N803
    loss: str = "square",
    slope_negative: float = 0.0,
    slope_positive: float = 1.0,
) -> Evaluation:
    """Evaluate both limits on given weights and samples.

    Args:
        Ws: W_1 … W_n, n ≥ 2, ``d_j × d_{j−1}``.
        X: Inputs, ``S × d_0``.
        Y: Targets, ``S × d_n``; class labels for ``"cross_entropy"``, ±1 for ``"logistic"``.
        loss: ``"square"`` (½‖h − y‖²), ``"logistic"`` or ``"cross_entropy"``, averaged over rows.
        slope_negative: a.
        slope_positive: Slope for z ≥ 0.

    Returns:
        ``rhs``, ``rhs_C_im2col``, ``lambda_min`` of the dense Hessian, in f/θ², and
        ``min_abs_preactivation``.

    Raises:
        AssumptionError: If there is one layer only, a shape does not fit, a number is not finite,
            or the loss is not one of these.
    """
    given.at_least_two("Ws", Ws)
    loss = loss_name(loss)
    weights = [given.matrix(f"Ws[{j}]", w) for j, w in enumerate(Ws)]
    for j, (below, above) in enumerate(pairwise(weights), 1):
        if above.shape[1] != below.shape[0]:
            fix = f"Its columns are the {below.shape[0]} units of the layer below."
            shape = list(above.shape)
            raise AssumptionError(must(f"Ws[{j}]", f"d × {below.shape[0]}", shape, fix))
    slopes = given.two_numbers(slope_negative, slope_positive)
    x, y = given.samples(X, Y, loss, (weights[0].shape[1], weights[-1].shape[0]))
    layers = [Dense(w.shape[1], w.shape[0]) for w in weights]
    point, smallest, margin = shared.given_point(
        layers, weights, [shared.dense_apply] * len(weights), x, y, loss, slopes
    )
    value = {
        "rhs": shared.by_norms(point, [1.0] * point.depth, point.norms),
        "rhs_C_im2col": shared.by_blocks(point),
        "lambda_min": smallest if math.isfinite(smallest) else None,
        "min_abs_preactivation": margin,
    }
    return Evaluation(value, shared.assumptions(point))


class Nonlinear(Floor):
    """λ_min of a fully connected network along a run, from below.

    The tight form; certified at the iterate, of which it takes the stored weights, up to the
    rounding of float64. At a kink the Hessian does not exist: kind ``"failed"``.
    """

    name = "nonlinear"
    speaks = True

    def is_other(self, network: NetworkPoint) -> str:
        """Refuse shared weights, and leave linear networks to Lemma 2 if not asked by name."""
        if shares_weights(network):
            return "Weights are shared; ask for the bound convolution."
        known = self.quiet and network.gradient is not None
        return "Lemma 2 covers linear networks." if known else ""

    def floor(self, network: NetworkPoint) -> float:
        """Return −λ_max(C)."""
        return shared.by_blocks(network)

    def assumptions(self, network: NetworkPoint) -> tuple[Assumption, ...]:
        """Return smoothness at θ, convexity of the loss and the kind of the layers."""
        return shared.assumptions(network)
