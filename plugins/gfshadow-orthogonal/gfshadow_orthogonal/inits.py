"""Starts whose end-to-end map is known: orthogonal layers, and layers near the identity."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torch_gfshadow.errors import must

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ScaledOrthogonal:
    """W = scale · Q with a random (semi-)orthogonal Q, for every linear and convolutional layer.

    For a linear network of equal widths the layers are exactly balanced,
    W_{j+1}ᵀW_{j+1} = W_jW_jᵀ = scale²·I, and the end-to-end matrix is scale^N times an orthogonal
    one. Where widths differ, Q has orthonormal rows or columns, whichever are fewer. A
    convolution is orthogonal as the matrix of its kernel, ``[out, in · k…]``. Biases become 0.

    Args:
        scale: Factor, positive; a string comes from ``"scaled_orthogonal:0.5"``.

    Raises:
        ValueError: If ``scale`` is not positive and finite.

    References:
        Saxe, McClelland & Ganguli 2014, arXiv:1312.6120; balance: Arora et al. 2019.
    """

    def __init__(self, scale: float | str = 1.0) -> None:
        self.scale = _number(scale)
        if not 0.0 < self.scale < math.inf:
            fix = "1 keeps norms; smaller starts nearer to the saddle at 0."
            raise ValueError(must("scale", "positive and finite", repr(scale), fix))

    def __call__(self, module: nn.Module) -> nn.Module:
        """Initialise ``module`` in place, and return it.

        Raises:
            ValueError: If it has no such layer, or one whose weight is computed.
        """
        return _fill(module, lambda weight: nn.init.orthogonal_(weight, gain=self.scale))


class IdentityPlusNoise:
    """W = I + noise · Z/√fan_in with standard normal Z: a residual layer that starts at nothing.

    A rectangular layer gets ones on its diagonal; a convolution passes its channels through. The
    end-to-end matrix of a linear network is I up to O(noise), the start from which gradient
    descent provably converges to positive definite targets. Biases become 0.

    Args:
        noise: Factor on Z, not negative; a string comes from ``"identity_plus_noise:0.1"``.

    Raises:
        ValueError: If ``noise`` is negative or not finite.

    References:
        Hardt & Ma 2017, arXiv:1611.04231; Bartlett, Helmbold & Long 2018, arXiv:1802.06093.
    """

    def __init__(self, noise: float | str = 0.01) -> None:
        self.noise = _number(noise)
        if not 0.0 <= self.noise < math.inf:
            raise ValueError(must("noise", "at least 0", repr(noise), "Try noise=0.01."))

    def __call__(self, module: nn.Module) -> nn.Module:
        """Initialise ``module`` in place, and return it.

        Raises:
            ValueError: If it has no such layer, or one whose weight is computed.
        """
        return _fill(module, self._near_identity)

    def _near_identity(self, weight: Tensor) -> None:
        identity = nn.init.eye_ if weight.ndim == 2 else nn.init.dirac_
        identity(weight)
        deviation = self.noise / math.sqrt(weight[0].numel())
        with torch.no_grad():
            weight.add_(torch.randn_like(weight), alpha=deviation)


def _fill(module: nn.Module, fill: Callable[[Tensor], object]) -> nn.Module:
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, *_CONVOLUTIONS))]
    if not layers:
        got, fix = type(module).__name__, "Initialise its parameters by hand."
        raise ValueError(must("module", "one with linear or convolutional layers", got, fix))
    for layer in layers:
        if not isinstance(layer.weight, nn.Parameter):
            got, fix = f"a computed one in {layer}", "Initialise before you parametrise the layer."
            raise ValueError(must("weight of module", "a parameter", got, fix))
    for layer in layers:
        fill(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return module


def _number(value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan
