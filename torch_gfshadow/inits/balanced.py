"""Procedure 1 of Elkabetz & Cohen: random balanced weights of deep linear networks.

Balance is exact up to rounding only: initialise in float64 where a theorem is to hold strictly
(in float32 the differences are of the order 1e-8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from torch_gfshadow.balance import balanced_factors, uniform_radius
from torch_gfshadow.conserved import LEVELS, largest, pairs
from torch_gfshadow.errors import AssumptionError, must

Distribution = Callable[[int, int], Tensor]
"""From (d_n, d_0) to an end-to-end matrix of that shape."""


def balanced_(
    weights: Sequence[Tensor],
    end_to_end: Tensor | Distribution | None = None,
    *,
    radius: float = 0.2,
    turn: bool = True,
    generator: torch.Generator | None = None,
) -> Sequence[Tensor]:
    """Fill the weights of a deep linear network so that they are balanced (Procedure 1).

    W_{j+1}ᵀW_{j+1} = W_jW_jᵀ for all neighbours, and W_n ⋯ W_1 is the end-to-end matrix.

    Args:
        weights: W_1, …, W_n, the input's layer first; changed in place.
        end_to_end: The matrix, shape ``[d_n, d_0]``, of rank at most the smallest width; or a
            function of (d_n, d_0) that draws one. By default a product of Gaussian matrices of
            the smallest width, of Frobenius norm uniform in (0, ``radius``]: for d_n = 1 the
            distribution of Corollary 2.
        radius: Largest norm of the default; the corollary asks for at most 0.2.
        turn: Turn hidden layers by random orthogonal matrices, which keeps both properties.
            Without it hidden units beyond the rank are exactly zero.
        generator: Source of randomness; the global one if not given.

    Returns:
        ``weights``.

    Raises:
        AssumptionError: If there are fewer than two, shapes do not chain, or the matrix has
            another shape, too high a rank, or is not finite.
        ValueError: If ``radius`` is not positive and finite.

    References:
        Elkabetz & Cohen 2021, Procedure 1 and Corollary 2.
    """
    dims = _dims(weights)
    if not (0.0 < radius < math.inf):
        raise ValueError(must("radius", "positive and finite", repr(radius), "Try 0.2."))
    if end_to_end is None:
        shape, rank = (dims[-1], dims[0]), min(dims)
        matrix = uniform_radius(shape, radius, rank=rank, generator=generator)
    elif isinstance(end_to_end, Tensor):
        matrix = end_to_end
    else:
        matrix = torch.as_tensor(end_to_end(dims[-1], dims[0]))
    layers = balanced_factors(matrix.double(), dims, turn=turn, generator=generator)
    with torch.no_grad():
        for weight, layer in zip(weights, layers, strict=True):
            weight.copy_(layer)
    return weights


class BalancedInit:
    """Apply :func:`balanced_` to the linear layers of a module, in their order; biases become 0.

    Args:
        radius: Largest norm of the end-to-end matrix; strings come from ``"balanced:0.1"``.
        end_to_end: The matrix, or a function of (d_n, d_0) that draws one.
        turn: As in :func:`balanced_`.

    Raises:
        ValueError: If ``radius`` is not positive and finite.
    """

    def __init__(
        self,
        radius: float | str = 0.2,
        end_to_end: Tensor | Distribution | None = None,
        turn: bool = True,
    ) -> None:
        try:
            self.radius = float(radius)
        except ValueError:
            self.radius = math.nan
        if not (0.0 < self.radius < math.inf):
            raise ValueError(must("radius", "positive and finite", repr(radius), "Try 0.2."))
        self.end_to_end, self.turn = end_to_end, turn

    def __call__(self, module: nn.Module) -> nn.Module:
        """Initialise ``module`` in place.

        Raises:
            ValueError: If it has other layers with weights, or its linear layers do not chain.
        """
        layers = [m for m in module.modules() if isinstance(m, (nn.Linear, _ConvNd))]
        odd = next((m for m in layers if not isinstance(m, nn.Linear)), None)
        if odd is not None or len(layers) < 2:
            got = f"one with {type(odd).__name__}" if odd is not None else f"{len(layers)} of them"
            fix = (
                "Balanced weights are defined for products of matrices; try scaled_xavier_uniform."
            )
            raise AssumptionError(must("module", "a chain of two or more Linear", got, fix))
        for layer in layers:
            if not isinstance(layer.weight, nn.Parameter):
                fix = "Initialise before you parametrise the layer."
                raise ValueError(must("weight of module", "a parameter", "a computed one", fix))
        weights = [layer.weight for layer in layers]
        try:
            balanced_(weights, self.end_to_end, radius=self.radius, turn=self.turn)
        except AssumptionError as error:
            raise AssumptionError(f"module: {error}") from error
        for layer in layers:
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        return module


def imbalance(module: nn.Module) -> dict[str, float]:
    """Measure how far neighbouring layers are from balanced, in units of W².

    Args:
        module: Any network; layers are its parameters named ``….weight``, in their order.

    Returns:
        ``full``, max_j ‖W_{j+1}ᵀW_{j+1} − W_jW_jᵀ‖, 0 for balanced linear networks; ``per_unit``,
        its largest diagonal entry, which is what ReLU networks conserve; ``per_layer``, its
        largest trace. Biases count as weights of a constant input. NaN without neighbours.
    """
    found = pairs(dict(module.named_parameters()))
    return {level: largest(found, level) for level in LEVELS}


def _dims(weights: Sequence[Tensor]) -> list[int]:
    if len(weights) < 2:
        fix = "With one layer there is nothing to balance."
        raise AssumptionError(must("depth n", "at least 2", len(weights), fix))
    for index, weight in enumerate(weights):
        if weight.ndim != 2:
            got = f"shape {tuple(weight.shape)}"
            raise AssumptionError(
                must(f"weights[{index}]", "a matrix", got, "Pass Linear weights.")
            )
    for index, (before, after) in enumerate(pairwise(weights)):
        if after.shape[1] != before.shape[0]:
            got = f"{after.shape[1]} columns after {before.shape[0]} rows"
            fix = "Pass the layers in order, the input's first."
            raise AssumptionError(
                must(f"weights[{index + 1}]", "fitting the layer before", got, fix)
            )
    return [weights[0].shape[1], *(w.shape[0] for w in weights)]
