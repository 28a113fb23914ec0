"""Curvature: Hessian-vector products ∇²f(θ)v, linearised once per point and checked on first use.

Read next: ``eigen``, which asks for many products at one point.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._differences import Referee, calibrated_step, central_difference
from torch_gfshadow._linearise import BACKENDS, LINEARISE, Linearise, Linearised
from torch_gfshadow.errors import CurvatureError, must, unknown_name
from torch_gfshadow.objective import Objective


class Curvature:
    """Hessian products of one objective, by the first backend that is right for the model.

    ``"func"`` (torch.func) and ``"double_backward"`` linearise the gradient once per point;
    ``"difference"`` takes two gradients per product and is right for every model. Each of the
    first two is silently wrong for some (dropout masks, weight and spectral norm), so neither is
    used before its products agree with central differences in two random directions. The check
    is repeated when the model changes between train and eval.

    Args:
        objective: What to differentiate. The attribute may be replaced by a sibling made with
            ``objective.over(batch)``.
        backend: One of the three, or ``"auto"`` to try them in this order.
        max_graphs: Largest number of chunks whose graphs are kept at once. Beyond it every
            product linearises chunk by chunk again, which costs one gradient more.

    Attributes:
        backend: The backend in use; None before the first use.
        rejected: Why other backends were not taken, by name.

    Raises:
        ValueError: If ``backend`` is not one of these names.
    """

    def __init__(self, objective: Objective, backend: str = "auto", *, max_graphs: int = 8) -> None:
        if backend not in ("auto", *BACKENDS):
            raise ValueError(unknown_name("backend", backend, ("auto", *BACKENDS)))
        self.objective = objective
        self.max_graphs = max_graphs
        self.backend: str | None = None
        self.rejected: dict[str, str] = {}
        self._wanted = BACKENDS if backend == "auto" else (backend,)
        self._accepted: dict[tuple[bool, ...], str] = {}
        self._relative_step: float | None = None

    def at(self, theta: Tensor, purpose: str = "probes") -> HessianProduct:
        """Linearise the gradient at ``theta``; the result serves any number of products.

        Args:
            theta: Flat parameters, shape ``[d]``.
            purpose: Under which the ledger counts the products and the gradients they take.

        Returns:
            A callable v → ∇²f(θ)v that also knows f(θ) and ∇f(θ).

        Raises:
            CurvatureError: If the backend asked for is wrong for this model.
        """
        theta = theta.detach().clone()
        mode = tuple(module.training for module in self.objective.sandbox.model.modules())
        if mode not in self._accepted:
            self._accepted[mode] = self._choose(theta)
        self.backend = self._accepted[mode]
        if self.backend == "difference" and self._relative_step is None:
            self._relative_step = self._calibrated(theta)
        return HessianProduct(
            self.objective,
            theta,
            LINEARISE.get(self.backend),
            purpose,
            keep=self.objective.n_chunks <= self.max_graphs,
            relative_step=self._relative_step or 0.0,
        )

    def _choose(self, theta: Tensor) -> str:
        sandbox, ledger = self.objective.sandbox, self.objective.ledger
        if self._wanted == ("difference",):
            return "difference"
        batch = next(self.objective.chunks())[0]
        referee = Referee(sandbox, theta, batch)
        self.rejected = {}
        try:
            for name in self._wanted:
                if name == "difference":
                    return name
                try:
                    error = referee.disagreement(self._trial(name, referee, batch))
                except Exception as failure:  # anything: transforms raise what they like
                    lines = str(failure).strip().splitlines() or [""]
                    self.rejected[name] = f"{type(failure).__name__}: {lines[0]}"
                    continue
                if error <= referee.tolerance:
                    return name
                self.rejected[name] = f"{error:.2g} away from central differences"
        finally:
            ledger.grads["setup"] += referee.n_gradients
        raise CurvatureError(
            must(
                "backend",
                "right for this model",
                f"{self._wanted[0]!r}, {self.rejected[self._wanted[0]]}",
                'Pass hvp="auto", which falls back to central differences.',
            )
        )

    def _trial(self, name: str, referee: Referee, batch: Any) -> list[Tensor]:
        """Return the backend's products in the referee's directions."""
        sandbox, ledger = self.objective.sandbox, self.objective.ledger
        linearise = LINEARISE[name]
        with sandbox.guard():
            params = sandbox.params_at(referee.theta, referee.dtype)
            linearised = linearise(sandbox, params, batch, referee.dtype)
            products = []
            for direction in referee.directions:
                ledger.hvps["setup"] += 1
                vector = sandbox.params_at(direction, referee.dtype)
                product = linearised.product(vector)
                products.append(sandbox.layout.flatten(product, referee.theta.dtype))
            if referee.dtype is not None:
                # Right in float64; it must also run in the model's own precision.
                params = sandbox.params_at(referee.theta)
                linearise(sandbox, params, batch, None).product(params)
        return products

    def _calibrated(self, theta: Tensor) -> float:
        objective = self.objective
        theta = theta.to(objective.layout.dtype)
        chunk = [(next(objective.chunks())[0], 1.0)]

        def gradient(point: Tensor) -> Tensor:
            objective.ledger.grads["setup"] += 1
            return objective.sandbox.gradient(point, chunk)[1]

        # The gradient leans towards the sharp directions, which need the shortest step.
        direction = gradient(theta)
        if not bool(direction.any()):
            direction = torch.ones_like(direction)
        return calibrated_step(gradient, theta, direction)


class HessianProduct:
    """v → ∇²f(θ)v at one point. Dropping it frees the graphs it holds.

    Attributes:
        theta: The point, shape ``[d]``.
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor,
        linearise: Linearise | None,
        purpose: str,
        *,
        keep: bool,
        relative_step: float,
    ) -> None:
        self.theta = theta
        self._objective = objective
        self._linearise = linearise
        self._purpose = purpose
        self._relative_step = relative_step
        self._value: tuple[float, Tensor] | None = None
        self._graphs: list[tuple[Linearised, float]] | None = None
        if linearise is not None and keep:
            self._keep_graphs()

    @property
    def loss(self) -> float:
        """f(θ)."""
        return self._loss_and_grad()[0]

    @property
    def grad(self) -> Tensor:
        """∇f(θ), shape ``[d]``."""
        return self._loss_and_grad()[1]

    def __call__(self, vector: Tensor) -> Tensor:
        """Return ∇²f(θ)·``vector``, shape ``[d]``, in the layout's dtype.

        Raises:
            ValueError: If ``vector`` does not have the shape of θ.
        """
        objective, layout = self._objective, self._objective.layout
        if vector.shape != (layout.dim,):
            shape = list(vector.shape)
            fix = "Pass one flat vector in the order of the layout."
            raise ValueError(must("vector", f"of shape [{layout.dim}]", shape, fix))
        objective.ledger.hvps[self._purpose] += 1
        if self._linearise is None:
            return objective.averaged(self._difference(vector))
        wide = torch.promote_types(layout.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=layout.device)
        with objective.guard():
            direction = objective.sandbox.params_at(vector)
            for linearised, weight in self._linearised():
                part = layout.flatten(linearised.product(direction), wide)
                total = torch.add(total, part, alpha=weight)
        return objective.averaged(total.to(layout.dtype))

    def _loss_and_grad(self) -> tuple[float, Tensor]:
        if self._value is None:
            self._value = self._objective.loss_and_grad(self.theta, self._purpose)
        return self._value

    def _linearised(self) -> Iterator[tuple[Linearised, float]]:
        if self._graphs is not None:
            yield from self._graphs
            return
        objective, linearise = self._objective, self._linearise
        if linearise is None:
            return
        objective.ledger.grads[self._purpose] += 1
        params = objective.sandbox.params_at(self.theta)
        for batch, weight in objective.chunks():
            yield linearise(objective.sandbox, params, batch, None), weight

    def _keep_graphs(self) -> None:
        objective, layout = self._objective, self._objective.layout
        with objective.guard():
            graphs = list(self._linearised())
            loss = sum(weight * linearised.loss.item() for linearised, weight in graphs)
            wide = torch.promote_types(layout.dtype, torch.float32)
            grad = torch.zeros((), dtype=wide, device=layout.device)
            for linearised, weight in graphs:
                grad = torch.add(grad, layout.flatten(linearised.grads, wide), alpha=weight)
        self._graphs = graphs
        self._value = objective.mean(loss), objective.averaged(grad.to(layout.dtype))

    def _difference(self, vector: Tensor) -> Tensor:
        objective, dtype = self._objective, self._objective.layout.dtype
        theta = self.theta.to(dtype)

        def gradient(point: Tensor) -> Tensor:
            objective.ledger.grads[self._purpose] += 1
            return objective.sandbox.gradient(point, objective.chunks())[1]

        length = self._relative_step * (float(theta.norm()) or 1.0)
        return central_difference(gradient, theta, vector.to(dtype), length)
