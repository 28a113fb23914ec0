"""Gradients of large linear layers, multiplied straight into the vector they are added to.

The backward pass of y = xWᵀ makes gᵀx, as large as W, and only then is it added anywhere. In a
model whose parameters are mostly one matrix that is a whole copy of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn import functional as F  # noqa: N812  (torch's own spelling)
from torch.overrides import TorchFunctionMode

LEAST = 1 << 17
"""Entries from which on a matrix is large."""


class Direct(TorchFunctionMode):
    """Has :func:`torch.nn.functional.linear` add the gradients of its weights where they belong.

    Args:
        places: Weights, each with the part of the vector that is its own, of its shape, and what
            the gradient is multiplied by.

    Attributes:
        open: Whether backward passes now add; one inside a forward pass must not.
    """

    def __init__(self, places: Iterable[tuple[Tensor, Tensor, float]]) -> None:
        super().__init__()
        self.open = False
        self._places = {
            id(weight): (weight, part, scale)
            for weight, part, scale in places
            if weight.dim() == 2
            and weight.numel() >= LEAST
            and (weight.dtype, weight.device) == (part.dtype, part.device)
        }

    @property
    def used(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._places)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Be in effect in this block, if there is anything to do.

        A checkpoint runs its forward pass again, perhaps out of our sight, and must find there
        what was saved the first time: inside, it raises a RuntimeError.
        """
        if not self.used:
            yield
            return
        with self, disable_saved_tensors_hooks("a checkpointed model"):
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``; a linear layer with one of our weights in a form of our own."""
        if func is F.linear and len(args) + len(kwargs or {}) >= 2:
            given = _arguments(args, kwargs or {})
            place = None if given is None else self._places.get(id(given[1]))
            if given is not None and place is not None and _is_plain(*given):
                return _Linear.apply(*given, place[1], place[2], self)
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """y = xWᵀ + b."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        part: Tensor,
        scale: float,
        direct: Direct,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.part, ctx.scale, ctx.direct, ctx.biased = part, scale, direct, bias is not None
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        flat, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        by_weight = None
        if ctx.direct.open and not torch.is_grad_enabled():
            ctx.part.addmm_(flat.T, inputs, alpha=ctx.scale)
        elif ctx.needs_input_grad[1]:
            by_weight = flat.T @ inputs
        by_x = grad @ weight if ctx.needs_input_grad[0] else None
        by_bias = flat.sum(0) if ctx.biased and ctx.needs_input_grad[2] else None
        return by_x, by_weight, by_bias, None, None, None


def _arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, Any, Tensor | None] | None:
    named = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
    if "input" not in named or "weight" not in named:
        return None
    return named["input"], named["weight"], named.get("bias")


def _is_plain(x: Any, weight: Any, bias: Tensor | None) -> bool:
    """Say whether everything is a matrix of one dtype that autograd is to see."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.dim() >= 1
        and x.layout is torch.strided
        and x.dtype == weight.dtype
        and (bias is None or bias.dtype == x.dtype)
        and weight.requires_grad
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)
    )
