"""Evaluate a live model somewhere else without leaving a trace. Read next: ``objective``."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from torch_gfshadow._streams import Streams
from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import ObjectiveError, must

# The switches torch.nn.attention.sdpa_kernel works, which is ten times slower to enter and leave;
# they govern the CPU's kernels, too.
_FUSED_ATTENTION: tuple[tuple[Callable[[], bool], Callable[[bool], Any]], ...] = (
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
)

_math_enabled: Callable[[], bool] = torch.backends.cuda.math_sdp_enabled

_MISSING = object()

_CONTAINERS = frozenset({list, dict, set, deque, OrderedDict, defaultdict, Counter})
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_LOOKED_INTO = 64
"""Entries of a container beyond which it is copied without what they hold: a vocabulary, say."""

# One number for the whole process: a checkpointed forward is recomputed in autograd's own
# threads, so a thread-local flag would let hooks capture our batch as the user's.
_depth = 0


def probing() -> bool:
    """Return whether an evaluation of ours is under way, so that module hooks can ignore it."""
    return _depth > 0


@contextmanager
def isolated(device_types: Iterable[str], streams: Streams, *, eager: bool) -> Iterator[None]:
    """Give the block a standard state of torch and take nothing of it back out.

    Gradients on, inference mode and autocast off, attention by the plain formula (the fused
    kernels have no second derivative), compiled code run eagerly if ``eager``, random streams
    restored afterwards.
    """
    global _depth
    math = bool(_math_enabled())
    fused = [get() for get, _ in _FUSED_ATTENTION]
    with ExitStack() as stack:
        # Entered only where needed: this runs thousands of times around small models.
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in {"cpu", *device_types} - {"meta"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if eager:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        state = streams.state()
        _depth += 1
        try:
            for _, set_enabled in _FUSED_ATTENTION:
                set_enabled(False)
            torch.backends.cuda.enable_math_sdp(True)
            yield
        finally:
            _depth -= 1
            torch.backends.cuda.enable_math_sdp(math)
            for (_, set_enabled), enabled in zip(_FUSED_ATTENTION, fused, strict=True):
                set_enabled(enabled)
            streams.load(state)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module under DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


def is_compiled(module: nn.Module) -> bool:
    """Return whether calling ``module`` runs code made by torch.compile."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


class Host:
    """Lends a live model other parameters for the length of a block.

    Attributes:
        copies: Whether to lend copies, because a forward pass writes into parameters.

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
            yield self.model
        finally:
            for store, content in saved:
                _put_back(store, content)


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
