"""λ_min of a network whose layers share weights (convolutions), from below.

W_j[p, q] = w_j[index_j[p, q]], or 0. With N_j the largest number of places of one weight::

    λ_min ≥ −(n−1) max(1, |a|)^{n−1} (1/S) Σ_i ‖∇ℓ_i‖ ‖x_i‖ max_{j<j'} √(N_j N_j') Π_{k≠j,j'} ‖W_k‖

(rhs). N_j may be replaced by κ_j = min(N_j, ‖Σ_c S_c S_cᵀ‖, ‖Σ_c S_cᵀ S_c‖), S_c the 0/1 pattern of
weight c (rhs_kappa): some tens instead of hundreds for a convolution. In the norms of the weights,
√(Π_j N_j) max_J Π_{j∈J} ‖w_j‖ (rhs_weight_norms). And tightest −λ_max(C) with the im2col matrices
of signals and inputs (rhs_C_im2col). Pointwise, as in the fully connected version.

Source: Elkabetz & Cohen 2021, the weight-sharing version of Lemma 2; κ and C are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from torch_gfshadow.bounds import _homogeneous as shared
from torch_gfshadow.bounds import _homogeneous_inputs as given
from torch_gfshadow.bounds._floors import Floor, shares_weights
from torch_gfshadow.bounds._losses import loss_name
from torch_gfshadow.bounds._scalars import listed
from torch_gfshadow.bounds.base import Assumption, Evaluation
from torch_gfshadow.errors import AssumptionError, must
from torch_gfshadow.network import NetworkPoint
from torch_gfshadow.network.layers import Shared


def evaluate(
    index: Sequence[Any],
    weights: Sequence[Any],
    X: Any,  # noqa: N803 - the key in the shared format
    Y: Any,  # noqa: N803
    loss: str = "square",
    slope_negative: float = 0.0,
    slope_positive: float = 1.0,
) -> Evaluation:
    """Evaluate all four limits on given weights and samples.

    Args:
        index: Per layer, n ≥ 2, a matrix ``d_j × d_{j−1}`` of positions in ``weights[j]``; −1 for
            a fixed zero. No position twice in a row of the matrix.
        weights: Per layer, w_j.
        X: Inputs, ``S × d_0``.
        Y: Targets, ``S × d_n``; class labels for ``"cross_entropy"``, ±1 for ``"logistic"``.
        loss: ``"square"`` (½‖h − y‖²), ``"logistic"`` or ``"cross_entropy"``, averaged over rows.
        slope_negative: a, the slope of the activation for z < 0.
        slope_positive: Its slope for z ≥ 0.

    Returns:
        ``rhs``, ``rhs_kappa``, ``rhs_weight_norms``, ``rhs_C_im2col``, ``lambda_min`` of the dense
        Hessian, in f/θ², and ``multiplicity`` and ``kappa`` per layer.

    Raises:
        AssumptionError: If there is one layer only, an index is out of range or twice in a row, a
            shape does not fit, a number is not finite, or the loss is not one of these.
    """
    given.at_least_two("index", index)
    loss = loss_name(loss)
    if len(listed("weights", weights, "vectors")) != len(index):
        fix = "Give the weights of every layer."
        raise AssumptionError(must("weights", f"{len(index)} vectors", len(weights), fix))
    vectors = [given.matrix(f"weights[{j}]", w).reshape(-1) for j, w in enumerate(weights)]
    layers = [_layer(j, i, w) for j, (i, w) in enumerate(zip(index, vectors, strict=True))]
    for j, (below, above) in enumerate(pairwise(layers), 1):
        if len(above.index[0]) != len(below.index):
            got = f"{len(above.index[0])} columns"
            fix = f"They are the {len(below.index)} units of the layer below."
            raise AssumptionError(must(f"index[{j}]", f"{len(below.index)} columns", got, fix))
    slopes = given.two_numbers(slope_negative, slope_positive)
    x, y = given.samples(X, Y, loss, (len(layers[0].index[0]), len(layers[-1].index)))
    apply = [shared.applied_by(layer.matrix) for layer in layers]
    point, smallest, _ = shared.given_point(layers, vectors, apply, x, y, loss, slopes)
    counts, kappa = zip(*(layer.sharing() for layer in layers), strict=True)
    vector_norms = [float(w.norm()) for w in vectors]
    in_weights = shared.by_norms(point, [1.0] * point.depth, vector_norms)
    value = {
        "rhs": shared.by_norms(point, counts, point.norms),
        "rhs_kappa": shared.by_norms(point, kappa, point.norms),
        "rhs_weight_norms": math.sqrt(math.prod(counts)) * in_weights,
        "rhs_C_im2col": shared.by_blocks(point),
        "lambda_min": smallest if math.isfinite(smallest) else None,
        "multiplicity": list(counts),
        "kappa": list(kappa),
    }
    return Evaluation(value, shared.assumptions(point))


def _layer(j: int, index: Any, weight: Tensor) -> Shared:
    rows = given.matrix(f"index[{j}]", index)
    if bool((rows != rows.round()).any() or (rows < -1).any() or (rows >= len(weight)).any()):
        got = "another number in it"
        fix = "A place in weights, counted from 0; −1 is a fixed zero."
        raise AssumptionError(must(f"index[{j}]", f"from −1 to {len(weight) - 1}", got, fix))
    table = tuple(tuple(int(entry) for entry in row) for row in rows)
    for row in table:
        used = [entry for entry in row if entry >= 0]
        if len(used) != len(set(used)):
            fix = "A weight may stand once in a row; split it, or the bound does not hold."
            raise AssumptionError(must(f"index[{j}]", "without repetition in a row", row, fix))
    return Shared(table, len(weight))


class Convolution(Floor):
    """λ_min of a network with shared weights along a run, from below.

    The tight form; certified at the iterate, of which it takes the stored weights, up to the
    rounding of float64. At a kink the Hessian does not exist: kind ``"failed"``.
    """

    name = "convolution"

    def is_other(self, network: NetworkPoint) -> str:
        """Refuse a network without shared weights."""
        shares = shares_weights(network)
        return "" if shares else "No weights are shared; ask for the bound nonlinear."

    def floor(self, network: NetworkPoint) -> float:
        """Return −λ_max(C)."""
        return shared.by_blocks(network)

    def assumptions(self, network: NetworkPoint) -> tuple[Assumption, ...]:
        """Return smoothness at θ, convexity of the loss and the kind of the layers."""
        return shared.assumptions(network)
