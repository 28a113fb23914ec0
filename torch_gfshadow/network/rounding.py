"""What float64 may have lost on the way through a network, so that limits stay limits.

A sum of d terms loses at most about d units of the sum of their sizes, which norms bound. Where
terms cancel (at a minimum, in saturated softmax, in Wᵀp) that is more than a share of the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_gfshadow.network.layers import Shared
from torch_gfshadow.network.values import Stage

UNIT = 2.0**-52
_WINDOWS = 1e-13  # of pools over hundreds of entries


@dataclass(frozen=True)
class Slope:
    """How far ∂ℓ_i/∂h_i, as it was computed, may be from the true one.

    Attributes:
        bend: Upper limit of ‖∂²ℓ_i/∂h_i²‖ for all h_i: what an error of h_i counts.
        floor: What the gradient of the loss may lose itself, whatever its size.
        share: The same, as a share of its size.
        here: ‖∂²ℓ_i/∂h_i²‖ at h_i, ``[S]``, where it changes by a factor e² per unit of h at most.
    """

    bend: float = 0.0
    floor: float = 0.0
    share: float = 8 * UNIT
    here: Tensor | None = None

    def __add__(self, other: Slope) -> Slope:
        """Return the error of a sum of two losses."""
        share = max(self.share, other.share)
        return Slope(self.bend + other.bend, self.floor + other.floor, share)

    def times(self, weight: float) -> Slope:
        """Return the error of a loss with a weight ≥ 0."""
        here = None if self.here is None else self.here * weight
        return Slope(self.bend * weight, self.floor * weight, self.share, here)

    def error(self, outputs: Tensor, sizes: Tensor) -> Tensor:
        """Return the limit, from the errors of h_i and the sizes of the slopes."""
        lost = _times(self.bend, outputs)
        if self.here is not None:
            local = self.here * outputs * torch.exp(2.0 * outputs)
            lost = torch.minimum(lost, local.nan_to_num(math.inf))  # 0·∞: no limit
        return lost.nan_to_num(math.inf) + self.floor + self.share * sizes


class Rounding:
    """Errors of one chunk of samples, carried through the layers and back.

    Attributes:
        inputs: Upper limit of the error of z_{i,j−1}, per layer, ``[S]``.
        signals: Upper limit of the error of p_{i,j}, per layer, ``[S]``.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        signals: Sequence[Tensor],
        norms: Sequence[float],
        steps: Sequence[float],
        slope: Slope,
    ) -> None:
        self._shares = shares = [_share(stage) for stage in stages]
        error = stages[0].inputs.new_zeros(len(stages[0].inputs))
        self.inputs = [error]
        for stage, norm, step, share in zip(stages, norms, [*steps, 1.0], shares, strict=True):
            error = _times(norm * step, self.inputs[-1] + share * _sizes(stage.inputs))
            self.inputs.append(error)
        outputs = self.inputs.pop()
        back = [slope.error(outputs, _sizes(signals[-1]))]
        for j in range(len(stages) - 2, -1, -1):
            lost = back[-1] + shares[j + 1] * _sizes(signals[j + 1])
            back.append(_times(norms[j + 1] * steps[j], lost))
        self.signals = back[::-1]

    def paths(self, j: int, k: int) -> float:
        """Return, as a share of its limit by norms, an upper limit of the error of B_i."""
        return 1.01 * sum(self._shares[j:k])


def _share(stage: Stage) -> float:
    """Return the error of one layer and its maps, as a share of the limit by norms."""
    layer, weight = stage.layer, stage.weight
    if isinstance(layer, Shared):
        terms = max(len(layer.index), len(layer.index[0]))
    else:
        terms = weight.numel() // max(1, min(weight.shape[:2]))
    # the norm of |W| is at most the root of the number of terms times that of W
    made = float(UNIT * (2 * terms**1.5 + 4 * len(stage.maps)))
    return made if all(m.elementwise for m in stage.maps) else made + _WINDOWS


def _sizes(vectors: Tensor) -> Tensor:
    sizes: Tensor = torch.linalg.vector_norm(vectors.detach().flatten(1), dim=1)
    return sizes


def _times(factor: float, errors: Tensor) -> Tensor:
    """Return a product in which an error of 0 stays 0, whatever overflowed beside it."""
    return torch.where(errors == 0.0, errors, factor * errors)
