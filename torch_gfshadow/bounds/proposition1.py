"""Proposition 1 of Elkabetz & Cohen: the Hessian of a deep linear network is unbounded below.

For depth n ≥ 3 and G_0 = ∇φ(0) ≠ 0 there are weights at which λ_min(∇²f) is any negative number.
With σ = ‖G_0‖, u and v its top singular vectors::

    W_1 = 0,  W_n = 0,  W_j = c e_1 e_1ᵀ (1 < j < n),  c = (M/σ)^{1/(n−2)}
    D_1 = e_1 vᵀ/√2,  D_n = −u e_1ᵀ/√2,  D_j = 0 otherwise

At this point φ'' does not enter and only the blocks (1, n) of the Hessian are not zero, so
λ_min = −σ c^{n−2} = −M exactly, in the direction D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from torch_gfshadow.bounds._chain import Chain
from torch_gfshadow.bounds._deep_linear import Point
from torch_gfshadow.bounds._inputs import Matrix
from torch_gfshadow.bounds._losses import Loss, loss_of
from torch_gfshadow.bounds._phi import exp
from torch_gfshadow.bounds._scalars import listed, number, size
from torch_gfshadow.bounds.base import Assumption, Evaluation
from torch_gfshadow.bounds.lemma1 import SMOOTH, quadratic_form
from torch_gfshadow.errors import AssumptionError, must


@dataclass(frozen=True, slots=True)
class Construction:
    """The point and the direction of Proposition 1.

    Attributes:
        weights: W_1, …, W_n.
        direction: D_1, …, D_n, of Frobenius norm 1 together.
        scale: c, the entry of the inner layers.
        lambda_min: ∇²f(θ)[D, D], evaluated by Lemma 1; −M up to rounding.
    """

    weights: tuple[Matrix, ...]
    direction: tuple[Matrix, ...]
    scale: float
    lambda_min: float


def proposition1(dims: Sequence[int], loss: Loss, target: float) -> Construction:
    """Build weights at which the smallest eigenvalue of the Hessian is ``target``.

    Args:
        dims: d_0, …, d_n, n ≥ 3, all at least 1.
        loss: φ, with ∇φ(0) ≠ 0.
        target: −M < 0, in f/θ².

    Returns:
        The point, the direction, and the eigenvalue as Lemma 1 evaluates it there.

    Raises:
        AssumptionError: If the depth is below 3, ∇φ(0) = 0, or the target is not negative.

    References:
        Elkabetz & Cohen 2021, Proposition 1; that λ_min is attained exactly is derived here.
    """
    widths = _widths(dims, loss)
    depth = len(widths) - 1
    fix = "The construction makes the curvature negative, not positive."
    magnitude = -number("target", target, "negative", lambda x: x < 0.0, fix)
    gradient = loss.gradient(np.zeros((widths[-1], widths[0])))
    left, sizes, right = np.linalg.svd(gradient, full_matrices=False)
    if not sizes[0] > 0.0:
        fix = "At W = 0 the loss is already smallest; shift or relabel the data."
        raise AssumptionError(must("‖∇φ(0)‖", "positive", f"{sizes[0]:g}", fix))
    scale = exp((math.log(magnitude) - math.log(float(sizes[0]))) / (depth - 2))
    weights = [np.zeros((rows, columns)) for columns, rows in pairwise(widths)]
    direction = [np.zeros_like(w) for w in weights]
    for inner in weights[1:-1]:
        inner[0, 0] = scale
    direction[0][0] = right[0] / math.sqrt(2.0)
    direction[-1][:, 0] = -left[:, 0] / math.sqrt(2.0)
    form = quadratic_form(Point(Chain(weights), loss), direction)
    return Construction(tuple(weights), tuple(direction), scale, float(form))


def evaluate(
    dims: Any,
    X: Any,  # noqa: N803 - the key in the golden file
    Y: Any,  # noqa: N803
    target: Any,
    loss: str = "square",
) -> Evaluation:
    """Evaluate the construction on data.

    Args:
        dims: d_0, …, d_n.
        X: Inputs, S × d_0.
        Y: Targets, S × d_n.
        target: −M < 0.
        loss: "square", "cross_entropy" or "logistic"; what follows a colon is a comment.

    Returns:
        ``lambda_min``, the quadratic form along the direction, and ``scale_c``.

    Raises:
        AssumptionError: As :func:`proposition1`.
    """
    outputs = dims[-1] if isinstance(dims, Sequence) and dims else None
    phi = loss_of(X, Y, loss, n_outputs=outputs)
    built = proposition1(dims, phi, target)
    norm = float(np.linalg.norm(phi.gradient(np.zeros(phi.shape)), 2))
    slope = Assumption("∇φ(0) ≠ 0", f"‖∇φ(0)‖ = {norm:g}", certain=True)
    value = {"lambda_min": built.lambda_min, "scale_c": built.scale}
    return Evaluation(value, (SMOOTH, slope))


def _widths(dims: Sequence[int], loss: Loss) -> tuple[int, ...]:
    widths = tuple(size(f"dims[{i}]", d) for i, d in enumerate(listed("dims", dims, "widths")))
    if len(widths) < 4:
        fix = "With two layers λ_min ≥ −‖∇φ(W)‖, which no choice of inner layers can lower."
        raise AssumptionError(must("depth of dims", "at least 3", len(widths) - 1, fix))
    if (widths[-1], widths[0]) != loss.shape:
        got = f"{widths[-1]} × {widths[0]}"
        fix = "dims begin with the columns of X and end with those of Y."
        rows, columns = loss.shape
        raise AssumptionError(must("d_n × d_0", f"{rows} × {columns} as in the data", got, fix))
    return widths
