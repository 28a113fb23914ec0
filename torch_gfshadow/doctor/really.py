"""Really: the referee. Set the parameters, run the model, call backward, read ``.grad``.

Of the library's own evaluation it uses the data and the recorded random numbers, nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_gfshadow._batch import map_tensors
from torch_gfshadow._purity import unwrap
from torch_gfshadow._tree import Layout, dense
from torch_gfshadow.objective import Objective

# Multiples of the usual ε^(1/3) step: a kink or a flat direction may want a shorter one, a model
# that rounds to float32 inside while it runs in float64 a longer one.
_STEPS = (1.0, 0.1, 0.01)
_LONGER = (100.0, 10.0)
# Where none of these is any good: between thousands of ReLUs only the shortest meets no kink.
_SHORTER = (1e-3, 1e-4)
_GOOD = 1e-6


class Really:
    """Loss and gradient of the mean loss at any θ, by moving a model there.

    Buffers, frozen parameters and attributes are put back before every evaluation and random
    numbers replayed, so that the same function is seen at each of them.

    Args:
        model: A model made like the one to judge; it will be changed.
        objective: The objective to judge: gives the batches and the random numbers.
        dtype: Cast model and batches to this precision first.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, dtype: torch.dtype | None = None
    ) -> None:
        judged = objective.sandbox.model
        self._model = unwrap(model)
        self._model.load_state_dict(judged.state_dict())
        for mine, theirs in zip(self._model.modules(), judged.modules(), strict=True):
            mine.training = theirs.training
        if dtype is not None:
            self._model.to(dtype)
        self._objective = objective
        self._fn: Callable[[nn.Module, Any], Tensor] = objective.sandbox.fn
        self._dtype = dtype
        named = dict(self._model.named_parameters())
        self._layout = Layout(objective.layout.names, [named[n] for n in objective.layout.names])
        # A forward pass may move frozen parameters: teachers that follow the one trained.
        others = [(n, p.data) for n, p in named.items() if n not in objective.layout.names]
        held = {**dict(self._model.named_buffers()), **dict(others)}
        self._held = [(tensor, tensor.clone()) for tensor in held.values()]
        self._attributes = [
            (name, module, dict(vars(module))) for name, module in self._model.named_modules()
        ]

    def __call__(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return ``(f(θ), ∇f(θ))``; the gradient has the shape and dtype of ``theta``."""
        sandbox = self._objective.sandbox
        total, flat = 0.0, torch.zeros_like(theta)
        with torch.no_grad():
            values = torch.split(theta, list(self._layout.sizes))
            for param, value in zip(self._layout.params, values, strict=True):
                param.copy_(value.view(param.shape))
        with sandbox.streams.kept():
            for batch, weight in self._objective.chunks():
                self._restore()
                self._model.zero_grad(set_to_none=True)
                sandbox.streams.load(sandbox.random_state)
                loss = self._fn(self._model, self._cast(batch))
                torch.autograd.backward(loss)
                total += weight * loss.item()
                grads = [None if p.grad is None else dense(p.grad) for p in self._layout.params]
                flat = flat.add(self._layout.flatten(grads, theta.dtype), alpha=weight)
        return total, flat

    def hessian_product(self, theta: Tensor, direction: Tensor) -> tuple[Tensor, float]:
        """Return ∇²f(θ)·``direction`` by central differences, and how sure it is.

        Args:
            theta: Where, shape ``[d]``.
            direction: A unit vector, shape ``[d]``.

        Returns:
            The product of the best step, and its distance to the next step's over its norm: an
            estimate of the referee's own relative error.
        """
        unit = max(float(theta.norm()), 1.0) * torch.finfo(theta.dtype).eps ** (1 / 3)

        def product(multiple: float) -> Tensor:
            step = multiple * unit
            ahead, behind = self(theta + step * direction)[1], self(theta - step * direction)[1]
            return torch.div(ahead - behind, 2 * step)

        fine = theta.dtype == torch.float64
        products = [product(m) for m in ((*_LONGER, *_STEPS) if fine else _STEPS)]
        found, doubt = _steadiest(products)
        if fine and doubt > _GOOD:
            products = [*products[-1:], *map(product, _SHORTER)]
            shorter, of_shorter = _steadiest(products)
            found, doubt = (shorter, of_shorter) if of_shorter < doubt else (found, doubt)
        return found, doubt

    def carried(self) -> list[str]:
        """Return what a forward pass leaves on modules for the next, if that changes the loss."""
        batch = next(self._objective.chunks())[0]
        with self._objective.sandbox.streams.kept(), torch.enable_grad():
            self._restore()
            losses = [self._loss(batch)]
            left = [
                f"{name}.{key}".lstrip(".")
                for name, module, before in self._attributes
                for key, value in vars(module).items()
                if before.get(key, self) is not value
            ]
            self._restore(attributes=False)
            losses.append(self._loss(batch))
            self._restore()
        same = abs(losses[0] - losses[1]) <= 1e-6 * max(map(abs, losses))
        return [] if same else left

    def _loss(self, batch: Any) -> float:
        self._objective.sandbox.streams.load(self._objective.sandbox.random_state)
        return float(self._fn(self._model, self._cast(batch)).detach())

    def _restore(self, *, attributes: bool = True) -> None:
        with torch.no_grad():
            for tensor, value in self._held:
                tensor.copy_(value)
        for _, module, before in self._attributes if attributes else []:
            now = vars(module)
            for key in now.keys() - before.keys():
                del now[key]
            now.update(before)

    def _cast(self, batch: Any) -> Any:
        dtype = self._dtype
        if dtype is None:
            return batch
        return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, batch)


def _steadiest(products: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Return the product that the next changes least, and that change over its norm."""
    gaps = [float((a - b).norm()) for a, b in itertools.pairwise(products)]
    best = min(range(len(gaps)), key=gaps.__getitem__)
    size = float(products[best].norm())
    return products[best], gaps[best] / size if size else 0.0
