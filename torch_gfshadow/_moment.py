"""Moment: what a forward pass begins with beside its parameters and its batch.

Random numbers, and what the passes before it have left: a queue of negatives, a codebook, a
momentum encoder, a hidden state. Whoever evaluates a pass after it has happened must begin there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))

Place = tuple[nn.Module, str, str]
"""Module, which of its dictionaries, and the key there."""


class Moment(NamedTuple):
    """The beginning of a forward pass.

    Attributes:
        random_state: Of the streams it draws from.
        held: Values by place; tensors among the attributes by reference, all else copied.
    """

    random_state: Any
    held: Sequence[tuple[Place, Any]] = ()

    def lend(self) -> None:
        """Give copies of what is held to a model that has been lent other parameters."""
        for (module, which, key), value in self.held:
            store = getattr(module, which)
            now = store.get(key)
            if which != "__dict__" and isinstance(now, Tensor):
                value = value.to(now.dtype, copy=True)
            else:
                value = _copied(value)
            store[key] = value


def hold(places: Sequence[Place]) -> list[tuple[Place, Any]]:
    """Return what is at ``places`` now."""
    held = []
    for module, which, key in places:
        value = getattr(module, which).get(key)
        if which != "__dict__" and value is not None:
            value = value.detach().clone()
        elif isinstance(value, list):
            value = list(value)  # a forward pass may add to it
        if value is not None or which == "__dict__":
            held.append(((module, which, key), value))
    return held


def _copied(value: Any) -> Any:
    """Return a copy of an attribute, so that a forward pass reaches neither it nor what it holds.

    A tensor put into a list of the user's inside a transform of torch.func could not be used again.
    """
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (tuple, list)):
        parts = [v.clone() if isinstance(v, Tensor) else v for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def all_places(model: nn.Module, trained: Collection[int]) -> list[Place]:
    """Return where a forward pass may leave something: good until it is known where one does.

    Frozen parameters among it where they are no more than those trained, as a momentum encoder's.

    Args:
        model: Looked at.
        trained: Identities of the parameters that are.
    """
    places: list[Place] = []
    sizes = {True: 0, False: 0}
    frozen: list[Place] = []
    for module in model.modules():
        for key, param in module._parameters.items():
            if param is not None:
                # thawed since the trained ones were last listed: the step to come trains it, too
                moves = id(param) in trained or param.requires_grad
                sizes[moves] += param.numel()
                if not moves:
                    frozen.append((module, "_parameters", key))
        if not keeps_statistics(module):
            places += [(module, "_buffers", key) for key in module._buffers]
        places += [
            (module, "__dict__", key)
            for key, value in vars(module).items()
            if key not in _OF_EVERY_MODULE and is_state(value)
        ]
    return places + (frozen if sizes[False] <= sizes[True] else [])


def keeps_statistics(module: nn.Module) -> bool:
    """Return whether the buffers of ``module`` are written, but not read."""
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.training


def is_state(value: Any) -> bool:
    """Return whether an attribute may be what the next forward pass goes on from."""
    if type(value) in (tuple, list) or hasattr(value, "_fields"):
        return bool(value) and all(isinstance(v, Tensor) and not v.requires_grad for v in value)
    return value is None or (isinstance(value, Tensor) and not value.requires_grad)


def untouched(now: Any, before: Any) -> bool:
    """Return whether a fresh copy of a tensor is that still, and nobody wrote to it.

    An encoder that follows one it equals yet is written to all the same.
    """
    if now is before:
        return True
    if not (isinstance(now, Tensor) and isinstance(before, Tensor)):
        return False
    if (not now.is_inference() and now._version > 0) or now.shape != before.shape:
        return False
    try:
        return torch.equal(now, before)
    except (RuntimeError, NotImplementedError):  # sparse, or of a class of its own: as far as seen
        return True
