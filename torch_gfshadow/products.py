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
from torch_gfshadow._symmetry import Rows, without
from torch_gfshadow.errors import NotAGradientError, must
from torch_gfshadow.objective import Objective

SYMMETRIC = 0.05
"""Largest asymmetry along random directions at which eigenvalues are looked for."""
CROOKED = 0.1
"""Largest ‖T − Tᵀ‖/‖T‖ of the Jacobian in the first of the space searched. Ritz values are those of
its symmetric part, and off in second order, by 1 % here; the residual holds all of it."""
# Differences leave 1e-7 in float64, 1e-4 where a model rounds to float32 inside.
_DOUBTED = 3e-4
_COMPARED = 10


def _no_eigenvalues(limit: float) -> str:
    return must(
        "the gradient of the objective",
        "that of a function for eigenvalues to be measured",
        f"one whose Jacobian is not symmetric, by more than {limit:.0%}",
        "detach(), straight-through estimators, reversed gradients, spectral normalisation in "
        "training and tied padding rows do that. The shadow follows the gradient as it is; pass "
        "probes=() to do without the eigenvalues.",
    )


class HessianProduct:
    """v → ∇²f(θ)v at one point. Dropping it frees the graphs it holds.

    Attributes:
        theta: The point, shape ``[d]``.
        still: Entries that the flow never moves (padding rows of embeddings): the Hessian is that
            of the others, zero in these rows and columns.
        asymmetry: How far the gradient is from that of a function; see ``_symmetry.asymmetry``.
    """

    def __init__(self, objective: Objective, theta: Tensor, purpose: str) -> None:
        self.theta = theta
        self.still: Rows = ()
        self.asymmetry = 0.0
        self._seen: list[tuple[Tensor, Tensor]] = []
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
        product = self._product(without(vector, self.still)).to(objective.layout.dtype)
        return objective.averaged(without(product, self.still))

    @property
    def symmetric(self) -> bool:
        """Whether the gradient is that of a function, as far as its differences can tell."""
        return self.asymmetry <= _DOUBTED

    def eigen(self, vector: Tensor) -> Tensor:
        """Return the product with a unit vector, for one who searches for eigenvalues.

        Raises:
            NotAGradientError: If the gradient is not that of a function: then there are none. A
                random direction may not show it, so the first products of the search are compared.
        """
        if self.asymmetry > SYMMETRIC:
            raise NotAGradientError(_no_eigenvalues(SYMMETRIC))
        image = self(vector)
        if not self.symmetric and len(self._seen) < _COMPARED:
            self._seen.append((vector, image))
            if len(self._seen) in (_COMPARED // 2, _COMPARED):
                vectors, images = (torch.stack(part) for part in zip(*self._seen, strict=True))
                projected = vectors @ images.T
                if float((projected - projected.T).norm()) > CROOKED * float(projected.norm()):
                    raise NotAGradientError(_no_eigenvalues(CROOKED))
        return image

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
