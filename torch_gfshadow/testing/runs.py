"""A small training run with a shadow beside it, the same each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from torch_gfshadow.attach import attach
from torch_gfshadow.handle import Shadow
from torch_gfshadow.testing.isolation import isolated_plugins, own_random_state

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def toy_run(steps: int = 20, *, optimizer: MakeOptimizer | None = None, **options: Any) -> Shadow:
    """Train a small smooth network with a shadow beside it.

    Full batch, float64, on the CPU; the same run each time. No installed plugin takes part, and
    no random state outside is touched.

    Args:
        steps: Optimizer steps to take.
        optimizer: Makes the optimizer from the parameters; gradient descent with step size 0.1
            if not given.
        options: Arguments of :func:`torch_gfshadow.attach`, for example ``plugins=[mine]``.
            ``on_error="raise"`` unless given.

    Returns:
        The shadow, detached: loggers are finished, records stay.
    """
    with isolated_plugins(), own_random_state():
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        data = toy_data()
        make = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        stepper = make(model.parameters())
        given = {"data": data, "on_error": "raise", **options}
        with attach(stepper, model, toy_loss, **given) as shadow:
            for _ in range(steps):
                stepper.zero_grad()
                toy_loss(model, data).backward()  # type: ignore[no-untyped-call]
                stepper.step()
    return shadow


def toy_data() -> tuple[Tensor, Tensor]:
    """Return a regression problem, drawn from the global generator."""
    x = torch.randn(32, 4, dtype=torch.float64)
    return x, torch.sin(x.sum(1, keepdim=True))


def toy_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return half the mean square error."""
    x, y = batch
    error: Tensor = model(x) - y
    return 0.5 * error.square().mean()
