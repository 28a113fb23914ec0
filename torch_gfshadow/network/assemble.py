"""Sum what the chunks of the data contribute to a NetworkPoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_gfshadow.network.layers import Dense, every_pair
from torch_gfshadow.network.norms import SAFETY, sample_norms, stacked_norm
from torch_gfshadow.network.point import NetworkPoint, Pair, Samples
from torch_gfshadow.network.rounding import Rounding, Slope
from torch_gfshadow.network.values import Stage

_KEPT = 2**25  # entries of the inputs of a linear network: 256 MB
_MOST = 1e300
_EXACT_PATHS = 2**20
"""Largest number of entries of all B_i of a pair for which their norms are computed one by one."""


@dataclass(frozen=True)
class Part:
    """One chunk of the data run through the network: the stack and p at every pre-activation.

    ``slope`` says what float64 may have lost in the last of them.
    """

    stages: Sequence[Stage]
    signals: Sequence[Tensor]
    loss: frozenset[str]
    bends: Tensor | None = None
    slope: Slope = field(default_factory=Slope)


def assemble(parts: Iterable[Part]) -> NetworkPoint:
    """Sum what the chunks contribute; each is dropped before the next is made.

    The norm of a sum is bounded by the sum of the norms, chunk by chunk.
    """
    first: tuple[Stage, ...] = ()
    norms: list[float] = []
    between: list[float] = []
    sums: dict[tuple[int, int], list[float]] = {}
    signal, signal_error, n_kinks, linear = 0.0, 0.0, 0, True
    gradient: Tensor | None = None
    patterns: list[Tensor] = []
    activations: dict[str, None] = {}
    loss: frozenset[str] = frozenset()
    seen: list[Part] = []
    for part in parts:
        stages, p = part.stages, part.signals
        if not first:
            first = tuple(stages)
            norms = [s.layer.norm(s.weight.detach()) for s in stages]
            sums = {pair: [0.0] * 4 for pair in every_pair(len(stages))}
            gradient = torch.zeros(())
        steps = [math.prod(m.norm for m in s.maps) * SAFETY for s in stages[:-1]]
        between = [max(a, b) for a, b in zip(between or steps, steps, strict=True)]
        lost = Rounding(stages, p, norms, steps, part.slope)
        sizes = stages[0].inputs.flatten(1).norm(dim=1)
        signal += float(((p[-1].flatten(1).norm(dim=1) + lost.signals[-1]) * sizes).sum())
        signal_error += float((lost.signals[-1] * sizes).sum())
        for pair, total in sums.items():
            for index, value in enumerate(_contribution(stages, p, norms, steps, lost, *pair)):
                total[index] += value
        loss |= part.loss
        straight = all(m.linear for s in stages for m in s.maps)
        linear = linear and straight
        n_kinks += sum(_kinks(s) for s in stages)
        patterns += [m.pattern for s in stages for m in s.maps if m.pattern is not None]
        activations |= {m.name: None for s in stages for m in s.maps if m.name}
        if gradient is not None:
            share = _end_to_end(part) if straight else None
            gradient = None if share is None else gradient + share
            if gradient is not None:
                seen.append(part)
    kappa = [s.layer.sharing()[1] for s in first]
    pairs = {(j, k): _pair(total, math.sqrt(kappa[j] * kappa[k])) for (j, k), total in sums.items()}
    return NetworkPoint(
        names=tuple(s.name for s in first),
        layers=tuple(s.layer for s in first),
        weights=tuple(s.weight.detach() for s in first),
        norms=tuple(norms),
        between=tuple(between),
        signal=signal * SAFETY,
        signal_error=signal_error * SAFETY,
        pairs=pairs,
        linear=linear,
        activations=tuple(activations),
        loss=loss,
        n_kinks=n_kinks,
        pattern=torch.cat(patterns) if patterns else torch.zeros(0),
        gradient=gradient,
        samples=None if gradient is None else _samples(seen),
    )


def _samples(parts: Sequence[Part]) -> Samples | None:
    if sum(p.stages[0].inputs.numel() for p in parts) > _KEPT:
        return None
    bends = [p.bends for p in parts if p.bends is not None]
    return Samples(
        inputs=torch.cat([p.stages[0].inputs for p in parts]),
        outputs=torch.cat([p.stages[-1].outputs.detach() for p in parts]),
        slopes=torch.cat([p.signals[-1] for p in parts]),
        bends=torch.cat(bends) if len(bends) == len(parts) else None,
    )


def _contribution(
    stages: Sequence[Stage],
    signals: Sequence[Tensor],
    norms: Sequence[float],
    steps: Sequence[float],
    lost: Rounding,
    j: int,
    k: int,
) -> tuple[float, float, float, float]:
    """Return ‖M'‖², ‖M‖², Σ b‖p‖‖z‖ and what it may have lost, for one pair and chunk.

    M'(p_i) is weighted with b_i‖M(z_i)‖/‖M'(p_i)‖ and M(z_i) with its partner, so that no sample
    pays for another's size; any weights are right.
    """
    p, z = signals[k], stages[j].inputs
    b, b_most = _paths(stages, norms, steps, j, k)
    b_lost = b_most * lost.paths(j, k)
    p_norm, z_norm = p.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1)
    p_most, z_most = p_norm + lost.signals[k], z_norm + lost.inputs[j]
    # b'p'z' − bpz, each difference on its own: they are far smaller than the products
    off = b_lost * p_most * z_most + b * (lost.signals[k] * z_most + p_norm * lost.inputs[j])
    extra = float(off.nan_to_num(0.0, math.inf).sum()) * SAFETY
    summed = float((b * p_norm * z_norm).sum()) * SAFETY + extra
    alive = (p_norm > 0) & (z_norm > 0) & (b > 0)
    if not bool(alive.any()):
        return 0.0, 0.0, summed, extra
    left, right = stages[k].layer.signal_blocks, stages[j].layer.input_blocks
    p, z, b = p[alive], z[alive], b[alive]
    ratio = sample_norms(right, z) / sample_norms(left, p)
    # where a signal all but underflows its inputs must not count: the ratio is cut, not dropped
    ratio = ratio.nan_to_num(1.0, _MOST).clamp(1 / _MOST, _MOST)
    left_norm, right_norm = stacked_norm(left, p, b * ratio), stacked_norm(right, z, b / ratio)
    return left_norm * left_norm, right_norm * right_norm, summed, extra


def _pair(total: Sequence[float], sharing: float) -> Pair:
    left, right, summed, extra = total
    return Pair(mixed=math.sqrt(left * right) + sharing * extra, summed=sharing * summed)


def _paths(
    stages: Sequence[Stage], norms: Sequence[float], steps: Sequence[float], j: int, k: int
) -> tuple[Tensor, Tensor]:
    """Return ‖B_i‖ of every sample, from layer j to the input of layer k, and by norms alone."""
    n_samples = len(stages[j].inputs)
    product = math.prod(steps[j:k]) * math.prod(norms[j + 1 : k])
    bound = stages[j].inputs.new_full((n_samples,), product)
    slopes = [_slopes(stages[layer]) for layer in range(j, k)]
    if any(s is None for s in slopes):
        return bound, bound
    first = slopes[0]
    assert first is not None
    if k == j + 1:  # a diagonal
        return torch.minimum(bound, first.abs().amax(1) * SAFETY), bound
    inner = stages[j + 1 : k]
    matrices = [m for m in map(_matrix, inner) if m is not None]
    size = n_samples * first.shape[1] * max(s.outputs[0].numel() for s in inner)
    if len(matrices) < len(inner) or size > _EXACT_PATHS:
        return bound, bound
    chain = torch.diag_embed(first)
    for matrix, slope in zip(matrices, slopes[1:], strict=True):
        assert slope is not None
        chain = slope[:, :, None] * (matrix @ chain)
    return torch.minimum(bound, torch.linalg.matrix_norm(chain, 2) * SAFETY), bound


def _slopes(stage: Stage) -> Tensor | None:
    """Return the diagonal of the maps after a layer, ``[S, units]``, if they are diagonal."""
    total = torch.ones_like(stage.outputs.detach()).flatten(1)
    for done in stage.maps:
        if not done.elementwise:
            return None
        if done.slopes is not None:
            total = total * done.slopes.flatten(1)
    return total


def _matrix(stage: Stage) -> Tensor | None:
    """Return W_j if the layer is a plain matrix."""
    layer, weight = stage.layer, stage.weight.detach()
    if isinstance(layer, Dense) and layer.positions == 1:
        return weight if weight.shape == (layer.n_out, layer.n_in) else weight.mT
    matrix = getattr(layer, "matrix", None)
    return None if matrix is None else matrix(weight)


def _kinks(stage: Stage) -> int:
    """Count the kinks we sit on; a unit without any input stays where it is and does not count."""
    total = 0
    for done in stage.maps:
        if done.kinks is None or not bool(done.kinks.any()):
            continue
        at = done.kinks
        if at.shape == stage.outputs.shape:
            with torch.no_grad():
                size = stage.apply(stage.weight.detach().abs(), stage.inputs.abs())
            at = at & (size != 0)
        total += int(at.sum())
    return total


def _end_to_end(part: Part) -> Tensor | None:
    plain = all(isinstance(s.layer, Dense) and s.layer.positions == 1 for s in part.stages)
    # what stands after the last layer is a part of φ
    maps = [m for s in part.stages[:-1] for m in s.maps if m.slopes is not None]
    if not plain or maps:
        return None
    return part.signals[-1].mT @ part.stages[0].inputs
