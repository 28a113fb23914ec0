"""What a plugin must never do: disturb training, or have hooks that nobody calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torch_gfshadow.attach import attach
from torch_gfshadow.errors import PluginError
from torch_gfshadow.plugins import Plugins
from torch_gfshadow.testing.isolation import (
    isolated_plugins,
    own_random_state,
    random_states,
    same,
)
from torch_gfshadow.testing.runs import toy_data, toy_loss


def assert_inert(plugin: object | None = None, *, steps: int = 10, **options: Any) -> None:
    """Assert that training is bit-identical with and without a shadow that uses ``plugin``.

    The run has what is easily disturbed: dropout, batch normalisation, shuffled minibatches,
    momentum. Parameters, buffers, gradients and train flags are compared after every step, and
    the random states of torch, NumPy and Python.

    Args:
        plugin: The plugin; ``None`` checks ``options`` alone.
        steps: Optimizer steps to compare.
        options: Arguments of :func:`torch_gfshadow.attach` that put the plugin to use, for
            example ``probes=["mine"]``. ``flow="gradient_flow"`` and ``on_error="raise"``
            unless given.
    """
    if plugin is not None:
        options = {**options, "plugins": [plugin]}
    expected, got = _disturbable_run(steps, None), _disturbable_run(steps, options)
    for step, (plain, shadowed) in enumerate(zip(expected, got, strict=True), 1):
        changed = [name for name, value in plain.items() if not same(value, shadowed[name])]
        if changed:
            names = ", ".join(changed)
            raise AssertionError(f"training was disturbed: at step {step} {names} differ")


def assert_hooks_valid(plugin: object) -> None:
    """Assert that every hook of ``plugin`` exists, has a known signature, and registers specs.

    Args:
        plugin: The module or object that ``plugins=[...]`` or the entry point names.
    """
    with isolated_plugins():
        try:
            Plugins([plugin], on_error="raise")
        except PluginError as error:
            raise AssertionError(str(error)) from error


def _disturbable_run(steps: int, options: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Train, with a shadow unless ``options`` is ``None``; return what can be seen at each step."""
    seen = []
    with isolated_plugins(), own_random_state():
        layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)
        model = nn.Sequential(*layers).double()
        x, y = toy_data()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
        shadow = None
        if options is not None:
            defaults = {"data": (x, y), "flow": "gradient_flow", "on_error": "raise"}
            given = {**defaults, **options}
            shadow = attach(optimizer, model, toy_loss, **given)
        for _ in range(steps):
            rows = torch.randperm(len(x))[:16]
            optimizer.zero_grad()
            toy_loss(model, (x[rows], y[rows])).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seen.append(_visible(model))
        if shadow is not None:
            shadow.detach()
    return seen


def _visible(model: nn.Module) -> dict[str, Any]:
    seen: dict[str, Any] = {
        **random_states(),
        "the train flag": [module.training for module in model.modules()],
    }
    for name, parameter in model.named_parameters():
        seen[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
        seen[f"parameter {name}"] = parameter.detach().clone()
    return seen | {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}
