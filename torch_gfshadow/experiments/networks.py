"""The networks of the paper's Figures 1 and 3, and the objective they are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)

from torch_gfshadow.errors import must

ACTIVATIONS = ("linear", "relu")
CONVOLUTIONS = ("adapted", "off_the_shelf")


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


def convolutional(
    kind: str = "adapted", seed: int = 0, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Build one of the two convolutional networks of the paper's Figure 3, for 28 × 28 images.

    Both: conv 1→6, 5×5, of the image padded by 2; ReLU; conv 6→16, 5×5; ReLU; then fully
    connected 400-120-84-10 with ReLU. ``"adapted"`` to the theory: stride 2, no biases, no
    pooling. ``"off_the_shelf"`` (LeNet-5): stride 1, with biases, 2×2 max-pooling after each ReLU
    of a convolution. Weights are Xavier-uniform, biases zero, drawn as in
    :func:`fully_connected`.

    Args:
        kind: ``"adapted"`` or ``"off_the_shelf"``.
        seed: Seed of the weights.
        dtype: Type of the parameters.

    Returns:
        The network, in training mode, on the CPU; input ``[n, 1, 28, 28]``.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind not in CONVOLUTIONS:
        raise ValueError(
            must("kind", "'adapted' or 'off_the_shelf'", repr(kind), "Choose one of the two.")
        )
    generator = torch.Generator().manual_seed(seed)
    bias = kind == "off_the_shelf"
    stride, pool = (1, [nn.MaxPool2d(2)]) if bias else (2, [])
    options = {"kernel_size": 5, "stride": stride, "bias": bias}
    skip = nn.utils.skip_init
    first = skip(nn.Conv2d, 1, 6, padding=2, **options)  # type: ignore[no-untyped-call]
    second = skip(nn.Conv2d, 6, 16, **options)  # type: ignore[no-untyped-call]
    layers = [first, nn.ReLU(), *pool, second, nn.ReLU(), *pool, nn.Flatten()]
    for fan_in, fan_out in pairwise((400, 120, 84, 10)):
        layers += [] if fan_in == 400 else [nn.ReLU()]
        layers.append(skip(nn.Linear, fan_in, fan_out, bias=bias))  # type: ignore[no-untyped-call]
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers).to(dtype)


@dataclass(frozen=True)
class Network:
    """A network of the paper: what the column of its figure is called, and what it takes.

    Attributes:
        title: Heading.
        build: (seed, dtype) → the network at its start.
        sample: Shape of one image.
    """

    title: str
    build: Callable[[int, torch.dtype], nn.Sequential]
    sample: tuple[int, ...]


NETWORKS = {
    "linear": Network(
        "Fully connected, linear",
        lambda seed, dtype: fully_connected("linear", seed=seed, dtype=dtype),
        (784,),
    ),
    "relu": Network(
        "Fully connected, ReLU",
        lambda seed, dtype: fully_connected("relu", seed=seed, dtype=dtype),
        (784,),
    ),
    "adapted": Network(
        "Convolutional, adapted",
        lambda seed, dtype: convolutional("adapted", seed, dtype),
        (1, 28, 28),
    ),
    "off_the_shelf": Network(
        "Convolutional, off the shelf",
        lambda seed, dtype: convolutional("off_the_shelf", seed, dtype),
        (1, 28, 28),
    ),
}


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy of ``model`` on ``batch = (inputs, labels)``, in nats."""
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)
