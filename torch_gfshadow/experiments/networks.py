"""The fully connected networks of the paper's Figure 1, and the objective they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)

from torch_gfshadow.errors import must

ACTIVATIONS = ("linear", "relu")


def fully_connected(
    activation: str = "linear",
    widths: Sequence[int] = (784, 50, 50, 10),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Build a bias-free fully connected network x ↦ W_n σ(… σ(W_1 x)) with Xavier-uniform weights.

    The same seed gives the same weights under either activation. They are drawn from a generator
    of their own, in float32 whatever ``dtype``, so that the global random state stays where it
    was and a float64 run starts at the very point of the float32 one.

    Args:
        activation: ``"linear"`` (σ = identity) or ``"relu"``.
        widths: Input, hidden and output dimensions, at least two positive numbers.
        seed: Seed of the weights.
        dtype: Type of the parameters.

    Returns:
        The network, in training mode, on the CPU.

    Raises:
        ValueError: If the activation is unknown or ``widths`` is too short or not positive.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            must("activation", "'linear' or 'relu'", repr(activation), "Choose one of the two.")
        )
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(
            must(
                "widths",
                "two or more positive layer widths",
                tuple(widths),
                "Write it as (inputs, hidden, …, outputs).",
            )
        )
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        if layers and activation == "relu":
            layers.append(nn.ReLU())
        # skip_init: nn.Linear's own initialisation would draw from the global generator
        layer: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, fan_in, fan_out, bias=False
        )
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        layers.append(layer)
    return nn.Sequential(*layers).to(dtype)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy of ``model`` on ``batch = (inputs, labels)``, in nats."""
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)
