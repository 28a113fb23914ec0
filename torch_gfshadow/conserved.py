"""What gradient flow conserves in a network of homogeneous layers: differences of squared weights.

Between neighbouring layers W_j and W_{j+1}, with M_in = W_jW_jᵀ + b_jb_jᵀ and
M_out = W_{j+1}ᵀW_{j+1} (for convolutions rows and columns are channels), gradient flow conserves

* the whole matrix M_out − M_in, if the layers are linear and nothing lies between them;
* its diagonal, one number per unit or channel, if an activation a(cz) = c·a(z), c > 0, or pooling
  lies between (ReLU, leaky ReLU, max, average);
* its trace, if not even the units match.

Which of them it is need not be known: at any θ the gradient tells, because the rate of change
along the flow, 2(M_in' − M_out'), is zero where the quantity is conserved. Weight decay w shrinks
all of them by e^{−2wt}; gradient descent changes them by O(η²‖∇f‖²) a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

LEVELS = ("full", "per_unit", "per_layer")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two neighbouring layers.

    Attributes:
        names: Of their weights.
        difference: M_out − M_in, symmetric, units × units.
        rate: Its change per time along the gradient flow, if gradients were given.
        scale: An upper limit of the rate's size, for judging whether it is zero.
    """

    names: tuple[str, str]
    difference: Tensor
    rate: Tensor | None = None
    scale: float = 0.0

    def size(self, level: str) -> float:
        """Return the size of the difference at a level, in units of W²."""
        return _size(self.difference, level)

    def relative_rate(self, level: str) -> float:
        """Return the rate at a level as a share of what it could be; 0 if conserved."""
        if self.rate is None or self.scale == 0.0:
            return 0.0
        return _size(self.rate, level) / self.scale


def pairs(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None = None
) -> list[Pair]:
    """Return the neighbouring layers among ``weights``, in their order.

    Args:
        weights: Name → parameter; those named ``….weight`` with two dimensions or more are
            layers, ``….bias`` of the same prefix their bias.
        gradients: Of the same names, if rates are wanted.

    Returns:
        One entry for every two neighbours whose shapes fit: rows of the first are columns of the
        second, or its columns are several for each row, as after flattening channels.
    """
    layers = [name for name, w in weights.items() if name.endswith("weight") and w.ndim >= 2]
    found = []
    for first, second in pairwise(layers):
        units = weights[first].shape[0]
        if weights[second].shape[1] % units:
            continue
        into, out = _rows(weights, first), _columns(weights[second], units)
        difference = out.T @ out - into @ into.T
        if gradients is None:
            found.append(Pair((first, second), difference))
            continue
        slope_in, slope_out = _rows(gradients, first), _columns(gradients[second], units)
        half = slope_in @ into.T - slope_out.T @ out  # θ' = −∇f
        norms = [float(torch.linalg.matrix_norm(a)) for a in (into, slope_in, out, slope_out)]
        scale = 2.0 * (norms[0] * norms[1] + norms[2] * norms[3])
        found.append(Pair((first, second), difference, half + half.T, scale))
    return found


def largest(found: list[Pair], level: str) -> float:
    """Return the largest difference of all pairs at a level; NaN without pairs."""
    return max((pair.size(level) for pair in found), default=math.nan)


def conserved_level(found: list[Pair], tol: float) -> str | None:
    """Return the first of ``LEVELS`` at which every pair's relative rate is below ``tol``."""
    for level in LEVELS:
        if found and all(pair.relative_rate(level) <= tol for pair in found):
            return level
    return None


def of_level(difference: Tensor, level: str) -> Tensor:
    """Return what is conserved at a level: the matrix, its diagonal, or its trace."""
    if level == "full":
        return difference
    diagonal = torch.diagonal(difference)
    return diagonal if level == "per_unit" else diagonal.sum()


def _size(difference: Tensor, level: str) -> float:
    if level == "full":
        return float(torch.linalg.matrix_norm(difference, 2))
    return float(of_level(difference, level).abs().max())


def _rows(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return everything that feeds a layer's units, one row per unit; the bias is a column."""
    rows = tensors[name].detach().flatten(1)
    bias = tensors.get(name.removesuffix("weight") + "bias")
    if bias is not None:
        rows = torch.cat([rows, bias.detach().reshape(-1, 1)], 1)
    return rows.double()


def _columns(weight: Tensor, units: int) -> Tensor:
    """Return everything that leaves ``units`` units, one column per unit."""
    outputs = weight.shape[0]
    grouped = weight.detach().reshape(outputs, units, -1)
    return grouped.permute(0, 2, 1).reshape(-1, units).double()
