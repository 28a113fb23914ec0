"""Runs: the same few training steps, bare and shadowed, compared bit for bit."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._data import Chunks
from torch_gfshadow.attach import attach
from torch_gfshadow.doctor.setup import Factory, Setup, made, seed_everything
from torch_gfshadow.handle import Shadow

Fingerprint = dict[str, Any]


def step_of(setup: Setup) -> Callable[[], Any]:
    """Return one training step: the user's own, or full-batch gradient descent."""
    if setup.train_step is not None:
        return setup.train_step
    chunks = Chunks(setup.data, {p.device for p in setup.model.parameters()})

    def step() -> None:
        setup.optimizer.zero_grad()
        for batch, weight in chunks:
            torch.autograd.backward(weight * setup.objective(setup.model, batch))
        setup.optimizer.step()

    return step


def trained(
    factory: Factory, seed: int, steps: int, options: Mapping[str, Any] | None = None
) -> tuple[Fingerprint, Shadow | None]:
    """Make the model and train it ``steps`` steps.

    Args:
        factory: Makes the setup.
        seed: Of every random stream.
        steps: Optimizer steps.
        options: With them a shadow is attached; None trains bare.

    Returns:
        Everything the run leaves behind, by value, and its shadow.
    """
    setup = made(factory, seed)
    step = step_of(setup)
    seed_everything(seed)  # making the shadow may not move these either
    shadow = None
    if options is not None:
        shadow = attach(setup.optimizer, setup.model, setup.objective, data=setup.data, **options)
    try:
        for _ in range(steps):
            step()
        return _fingerprint(setup), shadow
    finally:
        if shadow is not None:
            shadow.detach()


def differing(a: Fingerprint, b: Fingerprint) -> list[str]:
    """Return what two runs do not have in common bit for bit, by name."""
    return [
        name for name in {**a, **b} if name not in a or name not in b or not _same(a[name], b[name])
    ]


def _fingerprint(setup: Setup) -> Fingerprint:
    out: Fingerprint = {
        "torch's random state": torch.get_rng_state(),
        "Python's random state": random.getstate(),
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        out["numpy's random state"] = numpy.random.get_state()[1].tobytes()
    for name, param in setup.model.named_parameters():
        out[f"parameter {name}"] = param.detach().clone()
        out[f"gradient of {name}"] = None if param.grad is None else param.grad.clone()
    out |= {f"buffer {name}": b.clone() for name, b in setup.model.named_buffers()}
    out |= {f"train flag of {n or 'the model'}": m.training for n, m in setup.model.named_modules()}
    state: Mapping[str, Any] = setup.optimizer.state_dict()
    out |= {f"optimizer{path}": value for path, value in _flat(state)}
    return out


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}")
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from _flat(value, f"{path}.{i}")
    else:
        yield path, tree.clone() if isinstance(tree, Tensor) else tree


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.is_sparse or b.is_sparse:
            return a.is_sparse == b.is_sparse and _same(a.to_dense(), b.to_dense())
        # a run that diverged is the same run: NaN equals NaN here
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.nan_to_num(), b.nan_to_num())
        )
    return type(a) is type(b) and bool(a == b)
