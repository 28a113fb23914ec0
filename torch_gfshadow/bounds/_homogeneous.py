"""What the non-linear and the weight-sharing version share: limits on λ_min from a NetworkPoint.

The Hessian is a positive semidefinite part (the loss is convex in the output) plus a symmetric
matrix without diagonal blocks, whose block norms the network knows: a block matrix is no larger
than the matrix of its blocks' norms. Derived from Elkabetz & Cohen 2021, Section 4 and its
extension to activations of bounded slope.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.bounds._phi import exp, log
from torch_gfshadow.bounds.base import Assumption
from torch_gfshadow.errors import AssumptionError, must
from torch_gfshadow.network import NetworkPoint, Part, Stage, assemble, two_slopes
from torch_gfshadow.network.layers import Layer, every_pair
from torch_gfshadow.network.rounding import UNIT, Slope


def by_norms(point: NetworkPoint, sharing: Sequence[float], norms: Sequence[float]) -> float:
    """Return the limit of λ_min by norms alone.

    In logarithms, because the products overflow long before the limit does::

        −(n−1) Π slopes · Σ_i ‖∇ℓ_i‖ ‖x_i‖ · max_{j<j'} √(N_j N_j') Π_{k≠j,j'} w_k

    Args:
        point: The network.
        sharing: N_j, κ_j, or anything else with ‖W_j‖² ≤ N_j‖w_j‖².
        norms: w_j ≥ ‖W_j‖.
    """
    n = point.depth
    if n < 2:
        return 0.0
    logs = [log(w) for w in norms]
    largest = max(
        (log(sharing[j]) + log(sharing[k])) / 2 + sum(logs[:j] + logs[j + 1 : k] + logs[k + 1 :])
        for j, k in every_pair(n)
    )
    slopes = sum(log(s) for s in point.between)
    return -exp(math.log(n - 1) + slopes + log(point.signal) + largest)


def by_blocks(point: NetworkPoint, *, summed: bool = False) -> float:
    """Return −λ_max(C), the tight limit of λ_min; C holds the norms of the blocks.

    Args:
        point: The network.
        summed: Take the sums of norms over samples instead of the norms of stacked matrices.
    """
    blocks = torch.zeros(point.depth, point.depth, dtype=torch.float64)
    for (j, k), pair in point.pairs.items():
        blocks[j, k] = blocks[k, j] = pair.summed if summed else min(pair.mixed, pair.summed)
    if not bool(blocks.isfinite().all()):
        return -math.inf
    # by the largest entry, so that no square overflows
    scale = float(blocks.max()) or 1.0
    return -float(torch.linalg.eigvalsh(blocks / scale)[-1]) * scale * (1 + 1e-12)


def assumptions(point: NetworkPoint) -> tuple[Assumption, ...]:
    """Return what the limits rest on at this point, each with how it was checked."""
    if point.linear:
        smooth = "one linear piece: no activation has a kink"
    elif point.n_kinks:
        smooth = f"failed: {point.n_kinks} activations sit exactly on their kink"
    else:
        smooth = f"held: none of {len(point.pattern):,} activations sits on its kink"
    names = ", ".join(sorted(point.loss)) or "piecewise linear"
    return (
        Assumption(
            "f is twice differentiable at θ",
            smooth,
            certain=not point.n_kinks,
            failed=bool(point.n_kinks),
        ),
        Assumption(
            "the loss is convex in the network's output",
            f"held: derived from the functions it is made of ({names})",
            certain=True,
        ),
        Assumption(
            "bias-free layers and homogeneous activations",
            f"held: {point.depth} layers, {', '.join(point.activations) or 'no activation'}",
            certain=True,
        ),
    )


def given_point(
    layers: Sequence[Layer],
    weights: Sequence[Tensor],
    apply: Sequence[Callable[[Tensor, Tensor], Tensor]],
    x: Tensor,
    y: Tensor,
    loss: str,
    slopes: tuple[float, float],
) -> tuple[NetworkPoint, float, float]:
    """Run given weights on given samples.

    Returns:
        The network, λ_min of its dense Hessian, and the smallest |pre-activation| before an
        activation.
    """
    leaves = [w.clone().requires_grad_() for w in weights]
    stages: list[Stage] = []
    z = x
    for index, (layer, leaf, run) in enumerate(zip(layers, leaves, apply, strict=True)):
        outputs = run(leaf, z)
        last = index == len(layers) - 1
        maps = () if last else (two_slopes(*slopes, outputs),)
        stages.append(Stage(layer, f"W_{index + 1}", leaf, z.detach(), outputs, run, maps))
        z = outputs if last else _activation(outputs, *slopes)
    if not bool(z.isfinite().all()):
        fix = "Float64 does not hold what the network returns; scale the weights."
        raise AssumptionError(must("the outputs h(x_i)", "finite", "an overflow", fix))
    signals = torch.autograd.grad(_loss(z, y, loss), [s.outputs for s in stages])
    part = Part(
        stages, signals, frozenset({loss}), slope=_slope(z.detach(), loss).times(1.0 / len(x))
    )
    point = assemble([part])
    before = [float(s.outputs.detach().abs().min()) for s in stages[:-1]]
    return point, _dense(weights, apply, x, y, loss, slopes), min(before, default=math.inf)


def _dense(
    weights: Sequence[Tensor],
    apply: Sequence[Callable[[Tensor, Tensor], Tensor]],
    x: Tensor,
    y: Tensor,
    loss: str,
    slopes: tuple[float, float],
) -> float:
    """Return λ_min of the dense Hessian, by double backward; NaN where it overflows."""

    def f(flat: Tensor) -> Tensor:
        z, start = x, 0
        for index, (w, run) in enumerate(zip(weights, apply, strict=True)):
            z = run(flat[start : start + w.numel()].view(w.shape), z)
            z = z if index == len(weights) - 1 else _activation(z, *slopes)
            start += w.numel()
        return _loss(z, y, loss)

    flat = torch.cat([w.reshape(-1) for w in weights])
    hessian: Any = torch.autograd.functional.hessian(f, flat, vectorize=True)  # type: ignore[no-untyped-call]
    if not bool(hessian.isfinite().all()):
        return math.nan
    return float(torch.linalg.eigvalsh((hessian + hessian.mT) / 2)[0])


def _activation(z: Tensor, negative: float, positive: float) -> Tensor:
    return torch.where(z >= 0, positive * z, negative * z)


def _loss(h: Tensor, y: Tensor, loss: str) -> Tensor:
    if loss == "square":
        return (h - y).square().sum(1).mean() / 2
    if loss == "logistic":
        return torch.nn.functional.softplus(-y * h).sum(1).mean()
    return torch.nn.functional.cross_entropy(h, y)


def _slope(h: Tensor, loss: str) -> Slope:
    """Return how accurate the gradient of the loss of one sample is."""
    if loss == "square":
        return Slope(bend=1.0)
    if loss == "logistic":  # the slope is a quotient without cancellation
        return Slope(bend=0.25, here=torch.exp(-h.abs()).sum(1))
    p = torch.softmax(h, 1)
    here = (1.0 - p.square().sum(1)).clamp(min=0.0) + h.shape[1] * 8 * UNIT
    return Slope(bend=0.5, floor=8 * UNIT, here=here)


def dense_apply(weight: Tensor, z: Tensor) -> Tensor:
    """Return z Wᵀ, one sample per row."""
    return z @ weight.mT


def applied_by(matrix_of: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return (w, z) ↦ z W(w)ᵀ."""
    return partial(_apply, matrix_of)


def _apply(matrix_of: Callable[[Tensor], Tensor], weight: Tensor, z: Tensor) -> Tensor:
    return z @ matrix_of(weight).mT
