"""Lemma 1 of Elkabetz & Cohen: the Hessian of a deep linear network as a quadratic form.

For f(θ) = φ(W), W = W_n ⋯ W_1 and G = ∇φ(W), in the direction D = (D_1, …, D_n)::

    ∇²f(θ)[D, D] = φ''(W)[Σ_j W_{n:j+1} D_j W_{j−1:1}]
                   + 2 tr(Gᵀ Σ_{j<j'} W_{n:j'+1} D_{j'} W_{j'−1:j+1} D_j W_{j−1:1})

The first term is never negative where φ is convex; the second is where gradient flow and gradient
descent can part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from torch_gfshadow.bounds._chain import Chain
from torch_gfshadow.bounds._deep_linear import Point, network
from torch_gfshadow.bounds._inputs import Matrix, layers, like
from torch_gfshadow.bounds._losses import Loss
from torch_gfshadow.bounds.base import Assumption, Evaluation

DENSE_LIMIT = 4000
"""Parameters up to which eigenvalues of the whole Hessian are computed: 128 MB, half a minute."""

SMOOTH = Assumption("f(θ) = φ(W_n ⋯ W_1), φ ∈ C²", "by construction from the loss", certain=True)
CONVEX = Assumption("φ convex", "by construction from the loss", certain=True)


def lemma1(weights: Sequence[Any], directions: Sequence[Any], loss: Loss) -> float:
    """Return ∇²f(θ)[D, D], exact up to rounding.

    Args:
        weights: W_1, …, W_n, n ≥ 2, W_j of shape d_j × d_{j−1}.
        directions: D_1, …, D_n, of the same shapes.
        loss: φ.

    Returns:
        The quadratic form, in the units of f where D has those of θ.

    Raises:
        AssumptionError: If the depth is below 2, shapes disagree, or a number is not finite.

    References:
        Elkabetz & Cohen 2021, Lemma 1.
    """
    chain = Chain(layers("Ws", weights))
    changes = like("dWs", directions, [w.shape for w in chain.weights])
    return float(quadratic_form(Point(chain, loss), changes))


def quadratic_form(point: Point, changes: Sequence[Matrix]) -> Any:
    """Return the form of Lemma 1 for matrices that were checked before."""
    chain = point.chain
    # the derivatives of W_j ⋯ W_1 along D, first and half of the second, layer by layer
    for j, (weight, change) in enumerate(zip(chain.weights, changes, strict=True), start=1):
        if j == 1:
            first, second = change, 0.0 * change
            continue
        second = weight @ second + change @ first
        first = weight @ first + change @ chain.product(j - 1, 1)
    bend = point.loss.curvature(chain.end, first)
    return bend + 2 * (point.outer * second).sum((-2, -1))


def evaluate(Ws: Any, dWs: Any, X: Any, Y: Any, loss: str = "square") -> Evaluation:  # noqa: N803
    """Evaluate the form and the spectrum of the Hessian it belongs to.

    Args:
        Ws: W_1, …, W_n.
        dWs: D_1, …, D_n.
        X: Inputs, S × d_0.
        Y: Targets, S × d_n.
        loss: "square", "cross_entropy" or "logistic"; what follows a colon is a comment.

    Returns:
        ``quadratic_form``, and ``lambda_min``, ``lambda_max``, ``trace`` of the dense Hessian
        (``None`` above 4,000 parameters, and where one overflows).

    Raises:
        AssumptionError: If a shape, the depth or the loss does not fit.
    """
    chain, phi = network(Ws, X, Y, loss)
    point, changes = Point(chain, phi), like("dWs", dWs, [w.shape for w in chain.weights])
    with np.errstate(over="ignore", invalid="ignore"):
        value: dict[str, Any] = {"quadratic_form": float(quadratic_form(point, changes))}
    value.update(lambda_min=None, lambda_max=None, trace=None)
    hessian = dense(point)
    if hessian is not None:
        spectrum = np.linalg.eigvalsh(hessian)
        value["lambda_min"], value["lambda_max"] = float(spectrum[0]), float(spectrum[-1])
        value["trace"] = float(np.trace(hessian))
    return Evaluation(value, (SMOOTH,))


def dense(point: Point) -> Matrix | None:
    """Return ∇²f, unless it is too large or leaves the range of a float."""
    if point.chain.size > DENSE_LIMIT:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        hessian = point.hessian()
    return hessian if np.isfinite(hessian).all() else None
