"""How accurate the gradient of a recognised loss is, from the calls that curve it.

A loss is an affine map of the outputs, a curved function, and a weight. A square passes an error
of the outputs on; where an exponential saturates, 1 − p is lost however small it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.network.calls import Call, swapped
from torch_gfshadow.network.rounding import UNIT, Slope

_CANCELLING = frozenset({
    "cross_entropy", "log_softmax", "logsumexp", "binary_cross_entropy_with_logits",
})  # fmt: skip
_SATURATING = _CANCELLING | {"softplus", "logsigmoid", "log1p", "soft_margin_loss"}
_ELEMENTWISE = frozenset({
    "square", "mse_loss", "huber_loss", "smooth_l1_loss", "pow", "pow_", "__pow__", "float_power",
    "exp", "exp_",
})  # fmt: skip
_NORMS = frozenset({"norm", "linalg.vector_norm", "linalg.norm"})

_FAR = 40.0  # where softmax and sigmoid are saturated in float64
_UNKNOWN = Slope(share=1e-9)  # of a norm: it bends without limit near 0


def curves(call: Call) -> bool:
    """Return whether a call on the output, or on an affine map of it, is what curves the loss."""
    return is_square(call) or call.name in _SATURATING | _ELEMENTWISE | _NORMS


def is_square(call: Call) -> bool:
    """Return whether a product is x·x, entry by entry, or its sum."""
    if len(call.args) < 2 or call.args[0] is not call.args[1]:
        return False
    whole = call.name in ("dot", "inner") and call.args[0].dim() == 1
    return whole or call.name in ("mul", "multiply", "__mul__")


def slope_of(loss: Tensor, outputs: Tensor, calls: Sequence[Call]) -> Slope:
    """Return how far ∂f/∂h may be off because of h and of the loss itself.

    Args:
        loss: f, in the graph.
        outputs: h, in the graph.
        calls: The calls that curve it.
    """
    if not calls:
        return Slope()
    weights = torch.autograd.grad(
        loss, [call.after for call in calls], retain_graph=True, allow_unused=True
    )
    total = Slope()
    for call, weight in zip(calls, weights, strict=True):
        if weight is not None:
            total = total + _one(call, weight, _reach(call.before, outputs))
    return total


def _one(call: Call, weight: Tensor, reach: float) -> Slope:
    """Return the error of one curved function behind an affine map of this size."""
    at = call.before.detach()
    if call.name in _SATURATING:
        signs = torch.arange(at.numel()).reshape(at.shape).to(at) % 2 * 2 - 1
        points = (at, 0.0 * at, _FAR * signs, -_FAR * signs)
        steepest = max(_largest(_first(call, weight, point)) for point in points)
        sharp = abs(float(call.get(1, "beta", 1.0))) if call.name == "softplus" else 1.0
        # softmax and sigmoid bend by less than the size of their slope
        floor = 16 * UNIT * steepest * reach if call.name in _CANCELLING else 0.0
        return Slope(2 * steepest * sharp * reach**2, floor)
    if call.name in _NORMS:
        return _UNKNOWN
    leaf = at.clone().requires_grad_()
    (first,) = torch.autograd.grad(_again(call, weight, leaf), leaf, create_graph=True)
    if not first.requires_grad:
        return Slope()
    (second,) = torch.autograd.grad(first.sum(), leaf, allow_unused=True)
    return Slope() if second is None else Slope(float(second.abs().max()) * reach**2)


def _reach(before: Tensor, outputs: Tensor) -> float:
    """Return about the largest entry of |∂before/∂h|, at least 1."""
    if not before.requires_grad:  # a copy of what was changed in place
        return 1.0
    signs = torch.arange(before.numel()).reshape(before.shape).to(before) % 2 * 2 - 1
    found: Iterable[Any] = (
        torch.autograd.grad(before, outputs, s, retain_graph=True, allow_unused=True)[0]
        for s in (torch.ones_like(before), signs)
    )
    return max(1.0, *(float(g.abs().max()) for g in found if g is not None), 1.0)


def _first(call: Call, weight: Tensor, point: Tensor) -> Tensor:
    leaf = point.clone().requires_grad_()
    return torch.autograd.grad(_again(call, weight, leaf), leaf)[0]


def _again(call: Call, weight: Tensor, leaf: Tensor) -> Tensor:
    """Return the weighted result of the call on other numbers."""
    args = swapped(call.args, {id(call.before): leaf})
    made: Tensor = call.function(*args, **call.kwargs)
    return (made * weight).sum()


def _largest(slopes: Tensor) -> float:
    """Return the largest norm of a sample's slope."""
    rows = slopes.flatten(1) if slopes.dim() > 1 else slopes.reshape(-1, 1)
    return float(rows.norm(dim=1).max())
