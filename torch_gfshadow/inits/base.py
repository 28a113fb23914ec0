"""What an initialiser is, and the near-zero family: a standard scheme times a small factor.

Near-zero starts are the setting in which gradient descent provably follows the flow: close to
the origin a deep network is nearly balanced, and −λ_min is small along the flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from torch_gfshadow.errors import must


@runtime_checkable
class Init(Protocol):
    """Changes the parameters of a module in place, and returns that module."""

    def __call__(self, module: nn.Module) -> nn.Module:
        """Initialise ``module``."""


def scaled_xavier_uniform_(
    tensor: Tensor,
    scale: float = 0.1,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill ``tensor`` with ``scale`` times Xavier's uniform distribution.

    Entries are independent, uniform on (−a, a) with::

        a = scale · gain · √(6 / (fan_in + fan_out))

    Args:
        tensor: A weight of at least two dimensions; changed in place.
        scale: Factor on every entry, positive; 1 is ``torch.nn.init.xavier_uniform_``.
        gain: Xavier's own factor, see ``torch.nn.init.calculate_gain``.
        generator: Source of randomness; the global one if not given.

    Returns:
        ``tensor``.

    Raises:
        ValueError: If ``scale`` is not positive and finite, or ``tensor`` has under two dimensions.

    References:
        Glorot & Bengio 2010, equation (16); scaled as in Elkabetz & Cohen 2021.
    """
    _check(tensor, scale)
    return nn.init.xavier_uniform_(tensor, gain=scale * gain, generator=generator)


def scaled_kaiming_uniform_(
    tensor: Tensor,
    scale: float = 0.1,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill ``tensor`` with ``scale`` times Kaiming's uniform distribution.

    Entries are independent, uniform on (−b, b) with::

        b = scale · gain(nonlinearity, a) · √(3 / fan)

    Args:
        tensor: A weight of at least two dimensions; changed in place.
        scale: Factor on every entry, positive; 1 is ``torch.nn.init.kaiming_uniform_``.
        a: Slope of the leaky ReLU that follows.
        mode: ``"fan_in"`` or ``"fan_out"``.
        nonlinearity: As in ``torch.nn.init.calculate_gain``.
        generator: Source of randomness; the global one if not given.

    Returns:
        ``tensor``.

    Raises:
        ValueError: If ``scale`` is not positive and finite, or ``tensor`` has under two dimensions.

    References:
        He et al. 2015, arXiv:1502.01852, equation (10); scaled as in Elkabetz & Cohen 2021.
    """
    _check(tensor, scale)
    nn.init.kaiming_uniform_(tensor, a, mode, nonlinearity, generator=generator)  # type: ignore[arg-type]
    with torch.no_grad():
        return tensor.mul_(scale)


def scaled_normal_(
    tensor: Tensor, scale: float = 0.1, generator: torch.Generator | None = None
) -> Tensor:
    """Fill ``tensor`` with a Gaussian of mean 0 and standard deviation ``scale`` / √fan_in.

    At scale 1 a layer keeps the variance of its inputs.

    Args:
        tensor: A weight of at least two dimensions; changed in place.
        scale: Factor on every entry, positive.
        generator: Source of randomness; the global one if not given.

    Returns:
        ``tensor``.

    Raises:
        ValueError: If ``scale`` is not positive and finite, or ``tensor`` has under two dimensions.
    """
    _check(tensor, scale)
    fan_in = tensor.shape[1] * math.prod(tensor.shape[2:])
    return nn.init.normal_(tensor, 0.0, scale / math.sqrt(max(1, fan_in)), generator=generator)


class ScaledInit:
    """Apply one of the functions above to every linear and convolutional layer; biases become 0.

    Other layers (normalisation, embeddings) keep their values.

    Args:
        fill: Function of ``(tensor, scale)`` that fills a weight in place.
        scale: Factor on every weight, positive; strings come from ``"name:argument"``.

    Raises:
        ValueError: If ``scale`` is not a positive finite number.
    """

    def __init__(self, fill: Callable[[Tensor, float], Tensor], scale: float | str = 0.1) -> None:
        self.fill, self.scale = fill, _positive_finite(scale)

    def __call__(self, module: nn.Module) -> nn.Module:
        """Initialise ``module`` in place.

        Raises:
            ValueError: If it has no such layer, or one whose weight is computed from others.
        """
        layers = [
            (name, layer)
            for name, layer in module.named_modules()
            if isinstance(layer, (nn.Linear, _ConvNd))
        ]
        if not layers:
            fix = "Call the functions with trailing underscore on its weights."
            got = type(module).__name__
            raise ValueError(must("module", "one with linear or convolutional layers", got, fix))
        for name, layer in layers:
            if not isinstance(layer.weight, nn.Parameter):
                got = f"a computed one in {name or type(layer).__name__}"
                fix = "Initialise before you parametrise the layer."
                raise ValueError(must("weight", "a parameter", got, fix))
        for _, layer in layers:
            self.fill(layer.weight, self.scale)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        return module


def _check(tensor: Tensor, scale: float) -> None:
    _positive_finite(scale)
    if tensor.ndim < 2:
        fix = "A fan needs rows and columns; fill vectors with torch.nn.init.zeros_."
        got = f"shape {tuple(tensor.shape)}"
        raise ValueError(must("tensor", "at least two-dimensional", got, fix))


def _positive_finite(scale: float | str) -> float:
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not (number > 0.0 and math.isfinite(number)):
        # At 0 every layer but the last sees a zero gradient: a saddle that the flow never leaves.
        fix = "Try scale=0.1; the smaller, the nearer to balance and the slower the start."
        raise ValueError(must("scale", "positive and finite", repr(scale), fix))
    return number
