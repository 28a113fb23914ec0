"""Which layer a call on a weight is, and how it is made again on other numbers."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from torch_gfshadow.network.calls import Call, name_of, per_dimension
from torch_gfshadow.network.conv import Conv
from torch_gfshadow.network.layers import Dense, Layer

PRODUCTS = ("matmul", "mm", "__matmul__")


def is_layer(function: Any) -> bool:
    """Return whether it applies a weight: a linear layer, a product, a convolution."""
    return name_of(function) in ("linear", "conv1d", "conv2d", "conv3d", *PRODUCTS)


def operands(call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return input, weight and bias; the weight of x @ W is taken as it stands in W(w)."""
    z, weight = call.args[:2]
    return z, weight, None if call.name in PRODUCTS else call.get(2, "bias")


def again(call: Call, z: Tensor, weight: Tensor, other_weight: Tensor, other: Tensor) -> Tensor:
    """Make the layer's call on another weight and input."""
    return call.function(other, other_weight, *call.args[2:], **call.kwargs)  # type: ignore


def geometry(call: Call, z: Tensor, weight: Tensor) -> Layer | str:
    """Return the operator of a call on input and weight, or why it is not covered."""
    if call.name in PRODUCTS or call.name == "linear":
        if z.dim() < 2 or weight.dim() != 2:
            return "it needs samples along the first dimension and a matrix"
        n_out, n_in = weight.shape if call.name == "linear" else weight.shape[::-1]
        return Dense(n_in, n_out, math.prod(z.shape[1:-1]))
    n_dims = weight.dim() - 2
    if z.dim() != n_dims + 2:
        return "it needs samples along the first dimension"
    stride = per_dimension(call.get(3, "stride", 1), n_dims)
    dilation = per_dimension(call.get(5, "dilation", 1), n_dims)
    padding = call.get(4, "padding", 0)
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if padding == "same":
        pads = tuple((t // 2, t - t // 2) for t in totals)
    elif padding == "valid":
        pads = ((0, 0),) * n_dims
    else:
        pads = tuple((p, p) for p in per_dimension(padding, n_dims))
    groups = int(call.get(6, "groups", 1))
    return Conv(tuple(weight.shape), tuple(z.shape[2:]), stride, pads, dilation, groups)
