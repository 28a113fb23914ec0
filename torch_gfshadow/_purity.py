"""A standard state of torch for our evaluations, and nothing of it left. Read next: ``_host``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn

from torch_gfshadow._streams import Streams

# The switches torch.nn.attention.sdpa_kernel works, which is ten times slower to enter and leave;
# they govern the CPU's kernels, too.
_FUSED_ATTENTION: tuple[tuple[Callable[[], bool], Callable[[bool], Any]], ...] = (
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
)

_math_enabled: Callable[[], bool] = torch.backends.cuda.math_sdp_enabled

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
