"""Where the gradient that training uses is not the gradient of the loss: padding rows, and others.

A field that is the gradient of a function has a symmetric Jacobian, its Hessian. Backward passes
compute other fields, too: ``nn.Embedding(padding_idx=…)`` leaves a row out, ``detach()``, a
straight-through estimator or a gradient reversal leave out or turn whole paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from torch_gfshadow._tree import Layout

Rows = Sequence[tuple[int, int]]
"""First entry and end of pieces of a flat vector."""


def padding_rows(model: nn.Module, layout: Layout) -> list[tuple[int, int]]:
    """Return where θ holds rows of embeddings whose gradient a backward pass leaves out.

    That of a tied weight may get one by its other use, so it takes a look at a gradient to tell
    whether they rest.
    """
    starts = dict(zip(map(id, layout.params), accumulate((0, *layout.sizes)), strict=False))
    rows = set()
    for module in model.modules():
        if not isinstance(module, nn.Embedding) or module.padding_idx is None:
            continue
        weight = module.weight
        if id(weight) in starts:
            width = weight.shape[1] * (1 + weight.is_complex())
            start = starts[id(weight)] + module.padding_idx * width
            rows.add((start, start + width))
    return sorted(rows)


def without(vector: Tensor, rows: Rows) -> Tensor:
    """Return ``vector`` with zeros in ``rows``; itself if there are none."""
    if not rows:
        return vector
    vector = vector.clone()
    for start, end in rows:
        vector[start:end] = 0.0
    return vector


def asymmetry(
    product: Callable[[Tensor, float], Tensor], directions: Sequence[Tensor]
) -> tuple[float, int]:
    """Return how far a matrix J is from symmetric, and the products that took.

    A symmetric one has dᵀJJd = ‖Jd‖² for every d; with J = S + A, A antisymmetric, the two differ
    by 2‖Ad‖² + 2dᵀSAd. Returned is the largest difference over ‖Jd‖², less what the products are
    not sure of: about 2‖A‖/‖S‖ times the cosine between Sd and Ad.

    Args:
        product: (v, scale) → Jv by a difference whose usual displacement is multiplied by
            ``scale``.
        directions: Unit vectors d.
    """
    worst = 0.0
    for direction in directions:
        first = product(direction, 1.0)
        size = float(torch.dot(first, first))
        if size == 0.0:
            continue
        doubt = 3.0 * float((first - product(direction, 0.5)).norm()) / size**0.5
        gap = abs(size - float(torch.dot(direction, product(first, 1.0)))) / size
        # `>`, not max(): a NaN says nothing
        worst = gap - doubt if gap - doubt > worst else worst
    return worst, 3 * len(directions)
