"""Procedure 1 of Elkabetz & Cohen as numbers: what balanced weights of a matrix look like.

The initialiser itself is ``torch_gfshadow.inits.balanced_``; this says what every choice of
singular vectors has in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torch_gfshadow.balance import balanced_factors, unbalancedness
from torch_gfshadow.bounds._balanced import tensor
from torch_gfshadow.bounds._scalars import held, listed, size
from torch_gfshadow.bounds.base import Evaluation


def procedure1(A: Any, dims: Sequence[int]) -> Evaluation:  # noqa: N803 - the paper's letter
    """Factor A into balanced weights and return what does not depend on the choice of signs.

    Args:
        A: The end-to-end matrix, d_n rows and d_0 columns.
        dims: d_0, d_1, …, d_n.

    Returns:
        ``end_to_end``, the product of the weights; ``W_spec`` and ``W_fro_sq``, the spectral norm
        and the squared Frobenius norm that all of them share; ``balancedness_residual_max``; and
        ``shapes``.

    Raises:
        AssumptionError: If A has a rank above the smallest width, or a shape disagrees.

    References:
        Elkabetz & Cohen 2021, Procedure 1.
    """
    widths = [size(f"dims[{i}]", d) for i, d in enumerate(listed("dims", dims, "widths"))]
    layers = balanced_factors(tensor("A", A), widths)
    product = layers[0]
    for layer in layers[1:]:
        product = layer @ product
    residual = unbalancedness(layers)
    value = {
        "end_to_end": product.tolist(),
        "W_spec": max(float(torch.linalg.matrix_norm(w, 2)) for w in layers),
        "W_fro_sq": max(float(w.square().sum()) for w in layers),
        "balancedness_residual_max": residual,
        "shapes": [list(w.shape) for w in layers],
    }
    checked = held("rank A ≤ min dims; weights balanced", f"residual {residual:.1e}")
    return Evaluation(value, (checked,))
