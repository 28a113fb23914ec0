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
from torch_gfshadow.bounds._scalars import finite, listed
from torch_gfshadow.bounds.base import Assumption
from torch_gfshadow.errors import AssumptionError, must
from torch_gfshadow.network import NetworkPoint, Part, Stage, assemble, two_slopes
from torch_gfshadow.network.layers import Layer, every_pair
from torch_gfshadow.network.rounding import UNIT, Slope

LOSSES = ("square", "logistic", "cross_entropy")


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


def samples(X: Any, Y: Any, loss: str, widths: tuple[int, int]) -> tuple[Tensor, Tensor]:  # noqa: N803
    """Return checked inputs ``[S, d_0]`` and targets for ``loss``.

    Raises:
        AssumptionError: If the loss is unknown, a shape does not fit or a number is not finite.
    """
    x, y = matrix("X", X), matrix("Y", Y)
    if loss not in LOSSES:
        fix = "The bound needs a loss that is convex in the output."
        raise AssumptionError(must("loss", f"one of {', '.join(LOSSES)}", repr(loss), fix))
    if x.shape[1] != widths[0] or not len(x):
        fix = "One row per sample, one column per input of the first layer."
        raise AssumptionError(must("X", f"S × {widths[0]}, S ≥ 1", list(x.shape), fix))
    if loss == "cross_entropy":
        y = y.reshape(-1)
        if (
            len(y) != len(x)
            or bool((y != y.round()).any())
            or not 0 <= y.min() <= y.max() < widths[1]
        ):
            fix = f"One class from 0 to {widths[1] - 1} per sample."
            raise AssumptionError(must("Y", f"{len(x)} class labels", y.tolist()[:5], fix))
        return x, y.long()
    if list(y.shape) != [len(x), widths[1]]:
        fix = "One row per sample, one column per output."
        raise AssumptionError(must("Y", f"{len(x)} × {widths[1]}", list(y.shape), fix))
    if loss == "logistic" and not bool((y.abs() == 1.0).all()):
        bad = float(y[y.abs() != 1.0][0])
        raise AssumptionError(must("Y", "±1 for the logistic loss", bad, "Map 0 to −1."))
    return x, y


def matrix(argument: str, value: Any) -> Tensor:
    """Return ``value`` as a float64 matrix.

    Raises:
        AssumptionError: If it is none, or a number in it is not finite.
    """
    try:
        out = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        fix = "Give rows of equal length."
        raise AssumptionError(
            must(argument, "a matrix of numbers", repr(value)[:60], fix)
        ) from error
    if out.dim() == 1 and argument == "Y":
        out = out[:, None]
    if out.dim() == 1 and argument.startswith("weights"):
        out = out[None]
    if out.dim() != 2:
        raise AssumptionError(must(argument, "a matrix", f"shape {list(out.shape)}", "Give rows."))
    if not bool(out.isfinite().all()):
        raise AssumptionError(must(argument, "finite", "NaN or infinity in it", "Clean the data."))
    return out


def two_numbers(slope_negative: Any, slope_positive: Any) -> tuple[float, float]:
    """Return the slopes for z < 0 and z ≥ 0.

    Raises:
        AssumptionError: If one of them is not a finite number.
    """
    found = []
    for name, value in (("slope_negative", slope_negative), ("slope_positive", slope_positive)):
        found.append(finite(name, value, "ReLU has 0 and 1."))
    return found[0], found[1]


def at_least_two(argument: str, layers: Any) -> None:
    """Refuse a network of one layer.

    Raises:
        AssumptionError: If there are fewer than two layers, or it is no list.
    """
    count = len(listed(argument, layers, "matrices"))
    if count < 2:
        fix = "With one layer f is convex and λ_min ≥ 0."
        raise AssumptionError(must(argument, "two or more layers", count, fix))


def dense_apply(weight: Tensor, z: Tensor) -> Tensor:
    """Return z Wᵀ, one sample per row."""
    return z @ weight.mT


def applied_by(matrix_of: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return (w, z) ↦ z W(w)ᵀ."""
    return partial(_apply, matrix_of)


def _apply(matrix_of: Callable[[Tensor], Tensor], weight: Tensor, z: Tensor) -> Tensor:
    return z @ matrix_of(weight).mT
