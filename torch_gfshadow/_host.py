"""Evaluate a live model at other parameters, without leaving a trace in it."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from torch_gfshadow._moment import Place, is_state, keeps_statistics, untouched
from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import ObjectiveError, must

_MISSING = object()

_CONTAINERS = frozenset({list, dict, set, deque, OrderedDict, defaultdict, Counter})
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_LOOKED_INTO = 64
"""Entries of a container beyond which it is copied without what they hold: a vocabulary, say."""


class Host:
    """Lends a live model other parameters for the length of a block.

    Attributes:
        copies: Whether to lend copies, because a forward pass writes into parameters.
        moves: Where the first forward pass left something for the next; None before that.

    Everything the model holds by reference is swapped at the modules themselves, so submodule
    calls, ``model.parameters()`` and closures over the model see it too; tied parameters get
    one tensor. Attributes, parameters and buffers are put back by identity afterwards: what a
    forward pass stores on its modules (batch statistics, counters, the weight of weight_norm,
    a train/eval flag) is forgotten. Tensors, lists, dictionaries and sets among the attributes
    are lent as copies, so that what a forward pass adds to them in place (a metric's sums, a
    step's outputs, activations) is, too.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.model = model
        self.copies = False
        self.moves: list[Place] | None = None
        self._names = {
            id(param): name for name, param in zip(layout.names, layout.params, strict=True)
        }

    @contextmanager
    def swapped(
        self, params: Mapping[str, Tensor], dtype: torch.dtype | None = None
    ) -> Iterator[nn.Module]:
        """Lend ``params`` to the model; with ``dtype``, every other floating tensor is cast.

        Raises:
            ObjectiveError: If a parameter of the layout is no longer in the model.
        """
        modules = list(self.model.modules())
        saved = [
            (store, dict(store))
            for module in modules
            for store in (module.__dict__, module._parameters, module._buffers)
        ]
        given: dict[str, Tensor] = {}
        lent: dict[int, Tensor] = {}
        copies: dict[int, Any] = {}
        found = set()
        try:
            for module in modules:
                for key, value in module.__dict__.items():
                    if key not in _OF_EVERY_MODULE and _is_kept(value):
                        module.__dict__[key] = _copied(value, copies)
                for key, param in list(module._parameters.items()):
                    if param is None:
                        continue
                    name = self._names.get(id(param))
                    if name is not None:
                        found.add(name)
                        if name not in given:
                            given[name] = params[name].clone() if self.copies else params[name]
                        module._parameters[key] = cast(nn.Parameter, given[name])
                    elif id(param) not in lent:
                        lent[id(param)] = _held_fixed(param, dtype, copies=self.copies)
                    if name is None:
                        module._parameters[key] = cast(nn.Parameter, lent[id(param)])
                for key, buffer in list(module._buffers.items()):
                    if buffer is not None:
                        if id(buffer) not in lent:
                            lent[id(buffer)] = _cast(buffer.clone(), dtype)
                        module._buffers[key] = lent[id(buffer)]
                # Dense and sparse gradients are the same vector; only the dense kernel has a
                # second derivative.
                if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                    module.sparse = False
            if len(found) < len(self._names):
                raise ObjectiveError(
                    must(
                        "model",
                        "the module that holds the optimizer's parameters",
                        f"{len(self._names) - len(found)} of {len(self._names)} not in it",
                        "Attach again after replacing parameters or registering parametrizations.",
                    )
                )
            given_attributes = [dict(m.__dict__) for m in modules] if self.moves is None else []
            yield self.model
            if self.moves is None and dtype is None:
                self.moves = self._moved(modules, saved, given_attributes)
        finally:
            for store, content in saved:
                _put_back(store, content)

    def _moved(
        self, modules: list[nn.Module], saved: list[Any], given: list[dict[str, Any]]
    ) -> list[Place]:
        """Return where the block that ends has left something; what was trained is not asked."""
        moved: list[Place] = []
        for i, module in enumerate(modules):
            attributes, params, buffers = (content for _, content in saved[3 * i : 3 * i + 3])
            now = module.__dict__
            for key, value in now.items():
                if key in _OF_EVERY_MODULE or not is_state(value):
                    continue
                was = attributes.get(key)
                if given[i].get(key, _MISSING) is not value or not untouched(value, was):
                    moved.append((module, "__dict__", key))
            for key, param in params.items():
                frozen = param is not None and id(param) not in self._names
                if self.copies and frozen and not untouched(module._parameters.get(key), param):
                    moved.append((module, "_parameters", key))
            if not keeps_statistics(module):
                names = [k for k, v in buffers.items() if not untouched(module._buffers.get(k), v)]
                moved += [(module, "_buffers", key) for key in names]
        return moved


def _is_kept(value: Any) -> bool:
    """Return whether an attribute may be changed in place by a forward pass that keeps count."""
    return type(value) in _CONTAINERS or (type(value) is Tensor and not value.requires_grad)


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    """Return a copy of a tensor or container, and of those in it; what is shared stays shared."""
    if id(value) not in copies:
        twin = value.clone() if isinstance(value, Tensor) else copy.copy(value)
        copies[id(value)] = twin
        if not isinstance(value, (Tensor, set)) and len(value) <= _LOOKED_INTO:
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                if _is_kept(value[key]):
                    twin[key] = _copied(value[key], copies)
    return copies[id(value)]


def _held_fixed(param: Tensor, dtype: torch.dtype | None, *, copies: bool) -> Tensor:
    copies = copies or param.is_inference()
    if not (param.requires_grad or copies or type(param) is nn.Parameter):
        return _cast(param, dtype)  # a class of its own (quantised) is more than its values
    # A tensor of its own: a backward pass inside the objective must not reach param.grad, nor
    # `p.data = …` inside it the live parameter.
    lent = param.clone() if copies else param
    held = _cast(lent.detach(), dtype)
    # not at all where there is nothing to ask for: torch.func refuses the very call
    return held.requires_grad_() if param.requires_grad else held


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _put_back(store: Any, content: dict[str, Any]) -> None:
    now = dict(store)  # a scripted module's stores are no dictionaries
    for key in now.keys() - content.keys():
        del store[key]
    for key, value in content.items():
        if now.get(key, _MISSING) is not value:
            store[key] = value
