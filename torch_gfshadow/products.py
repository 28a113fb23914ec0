"""HessianProduct: v → ∇²f(θ)v at one point, by a linearised gradient or by differences.

Read next: ``curvature``, which decides by which, and makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._differences import Step
from torch_gfshadow._linearise import Linearise, Linearised
from torch_gfshadow.errors import must
from torch_gfshadow.objective import Objective


class HessianProduct:
    """v → ∇²f(θ)v at one point. Dropping it frees the graphs it holds.

    Attributes:
        theta: The point, shape ``[d]``.
    """

    def __init__(self, objective: Objective, theta: Tensor, purpose: str) -> None:
        self.theta = theta
        self._objective = objective
        self._purpose = purpose
        self._value: tuple[float, Tensor] | None = None

    @property
    def loss(self) -> float:
        """f(θ); free if the graphs are kept, one gradient otherwise, at the first call."""
        return self._loss_and_grad()[0]

    @property
    def grad(self) -> Tensor:
        """∇f(θ), shape ``[d]``; costs as :attr:`loss`."""
        return self._loss_and_grad()[1]

    def __call__(self, vector: Tensor) -> Tensor:
        """Return ∇²f(θ)·``vector``, shape ``[d]``, in the layout's dtype.

        Raises:
            ValueError: If ``vector`` does not have the shape of θ.
        """
        objective = self._objective
        if vector.shape != self.theta.shape:
            shape = list(vector.shape)
            fix = "Pass one flat vector in the order of the layout."
            raise ValueError(must("vector", f"of shape {list(self.theta.shape)}", shape, fix))
        objective.ledger.hvps[self._purpose] += 1
        return objective.averaged(self._product(vector).to(objective.layout.dtype))

    def _loss_and_grad(self) -> tuple[float, Tensor]:
        if self._value is None:
            self._value = self._objective.loss_and_grad(self.theta, self._purpose)
        return self._value

    def _product(self, vector: Tensor) -> Tensor:
        raise NotImplementedError


class LinearProduct(HessianProduct):
    """Products by a linearised gradient."""

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        purpose: str,
        linearise: Linearise,
        *,
        keep: bool,
    ) -> None:
        super().__init__(objective, theta, purpose)
        self._linearise = linearise
        self._graphs: list[tuple[Linearised, float]] | None = None
        if not keep:
            return
        objective.ledger.grads[purpose] += 1
        with objective.guard():
            try:
                graphs = [(self._graph(batch), weight) for batch, weight in objective.chunks()]
            except torch.OutOfMemoryError:
                if objective.n_chunks == 1:
                    raise
                return  # one chunk at a time may fit
            loss = sum(weight * graph.loss.item() for graph, weight in graphs)
            grad = self._summed((graph.grads, weight) for graph, weight in graphs)
        self._graphs = graphs
        grad = objective.averaged(grad.to(objective.layout.dtype))
        self._value = objective.mean(loss), grad

    def _product(self, vector: Tensor) -> Tensor:
        with self._objective.guard():
            return self._summed(self._products(self._objective.sandbox.params_at(vector)))

    def _products(
        self, direction: Mapping[str, Tensor]
    ) -> Iterator[tuple[Sequence[Tensor | None], float]]:
        if self._graphs is not None:
            for graph, weight in self._graphs:
                yield graph.product(direction), weight
            return
        self._objective.ledger.grads[self._purpose] += 1
        for batch, weight in self._objective.chunks():
            # Unnamed, so that each graph is gone before the next is made.
            yield self._graph(batch).product(direction), weight

    def _graph(self, batch: Any) -> Linearised:
        sandbox = self._objective.sandbox
        return self._linearise(sandbox, sandbox.params_at(self.theta), batch, None)

    def _summed(self, parts: Iterable[tuple[Sequence[Tensor | None], float]]) -> Tensor:
        layout = self._objective.layout
        # Half precision would lose the small summands.
        wide = torch.promote_types(layout.dtype, torch.float32)
        total: Tensor | None = None
        for tensors, weight in parts:
            flat = layout.flatten(tensors, wide)
            # In place, and nothing at all for a single chunk: each pass over a new vector of this
            # size costs up to a tenth of the product, most of it for touching fresh memory.
            if total is None:
                total = flat if weight == 1.0 else flat.mul_(weight)
            else:
                total.add_(flat, alpha=weight)
        return total if total is not None else torch.zeros((), dtype=wide, device=layout.device)


class DifferenceProduct(HessianProduct):
    """Products by central differences; the ledger counts their two gradients, too."""

    def __init__(self, objective: Objective, theta: Tensor, purpose: str, step: Step) -> None:
        super().__init__(objective, theta, purpose)
        self._step = step

    def _product(self, vector: Tensor) -> Tensor:
        objective = self._objective
        dtype = self._step.dtype or objective.layout.dtype

        def gradient(point: Tensor) -> Tensor:
            objective.ledger.grads[self._purpose] += 1
            return objective.sandbox.gradient(point, objective.chunks(), self._step.dtype)[1]

        return self._step.product(gradient, self.theta.to(dtype), vector.detach().to(dtype))
