"""The gradient of one batch, linearised once for many products. Only user of torch.func here.

Read next: ``curvature``, which decides which of these is right for a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from torch_gfshadow._sandbox import Sandbox


@dataclass(frozen=True)
class Linearised:
    """Loss and gradient of one batch, and the derivative of the gradient, ready for reuse."""

    loss: Tensor
    grads: Sequence[Tensor | None]
    product: Callable[[Mapping[str, Tensor]], Sequence[Tensor | None]]


Linearise = Callable[[Sandbox, Mapping[str, Tensor], Any, torch.dtype | None], Linearised]


def _by_func(
    sandbox: Sandbox, params: Mapping[str, Tensor], batch: Any, dtype: torch.dtype | None
) -> Linearised:
    """Linearise by torch.func: the pullback of the gradient map, which H = Hᵀ makes the product."""
    params = {name: param.detach() for name, param in params.items()}
    gradient = torch.func.grad_and_value(sandbox.pure(batch, dtype))
    grads, pullback, loss = cast(tuple[Any, ...], torch.func.vjp(gradient, params, has_aux=True))

    def product(vector: Mapping[str, Tensor]) -> Sequence[Tensor | None]:
        with torch.no_grad():  # else every product is itself made differentiable
            (result,) = pullback({name: vector[name] for name in grads})
        return [result[name] for name in params]

    return Linearised(loss, [grads[name] for name in params], product)


def _by_double_backward(
    sandbox: Sandbox, params: Mapping[str, Tensor], batch: Any, dtype: torch.dtype | None
) -> Linearised:
    """Linearise by keeping the graph of the backward pass."""
    inputs = {name: param.detach().requires_grad_() for name, param in params.items()}
    loss, grads = sandbox.grads(inputs, batch, dtype, create_graph=True)
    curved = {
        name: grad
        for name, grad in zip(inputs, grads, strict=True)
        if grad is not None and grad.requires_grad
    }

    def product(vector: Mapping[str, Tensor]) -> Sequence[Tensor | None]:
        if not curved:
            return [None] * len(inputs)
        with sandbox.swapped(inputs, dtype):  # checkpointed models run their forward again here
            return torch.autograd.grad(
                list(curved.values()),
                list(inputs.values()),
                [vector[name] for name in curved],
                retain_graph=True,
                allow_unused=True,
            )

    return Linearised(loss.detach(), grads, product)


LINEARISE: dict[str, Linearise] = {"func": _by_func, "double_backward": _by_double_backward}
BACKENDS = (*LINEARISE, "difference")
"""Names in the order in which ``"auto"`` tries them."""
