"""Curvature: Hessian-vector products ∇²f(θ)v, linearised once per point and checked on first use.

Read next: ``eigen``, which asks for many products at one point.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torch_gfshadow._differences import Referee, Step, choose_step
from torch_gfshadow._linearise import BACKENDS, LINEARISE
from torch_gfshadow._symmetry import asymmetry, without
from torch_gfshadow.errors import CurvatureError, must, unknown_name
from torch_gfshadow.objective import Objective
from torch_gfshadow.products import DifferenceProduct, HessianProduct, LinearProduct


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
        max_graphs: Largest number of chunks whose graphs are kept at once. Beyond it, or where
            they do not fit the device, every product linearises chunk by chunk again, which costs
            one gradient more.

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
        self._steps: dict[tuple[bool, ...], Step] = {}
        self._still: dict[tuple[bool, ...], list[tuple[int, int]]] = {}
        self._asymmetry: dict[tuple[bool, ...], float] = {}

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
            self._accepted[mode] = self._choose(theta, mode)
        self.backend = self._accepted[mode]
        product: HessianProduct
        if self.backend != "difference":
            keep = self.objective.n_chunks <= self.max_graphs
            by = LINEARISE[self.backend]
            product = LinearProduct(self.objective, theta, purpose, by, keep=keep)
        else:
            product = DifferenceProduct(self.objective, theta, purpose, self._step(theta, mode))
        product.still, product.asymmetry = self._still.get(mode, ()), self._asymmetry.get(mode, 0.0)
        return product

    def _step(self, theta: Tensor, mode: tuple[bool, ...]) -> Step:
        if mode not in self._steps:
            batch = next(self.objective.chunks())[0]
            self._steps[mode], n_grads = choose_step(self.objective.sandbox, theta, batch)
            self.objective.ledger.grads["setup"] += n_grads
        return self._steps[mode]

    def state_dict(self) -> dict[str, Any]:
        """Return which backends were accepted, so that a resumed run need not judge again."""
        return {
            "backend": self.backend,
            "rejected": dict(self.rejected),
            "accepted": dict(self._accepted),
            "steps": {mode: (s.dtype, s.relative) for mode, s in self._steps.items()},
            "still": dict(self._still),
            "asymmetry": dict(self._asymmetry),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.backend, self.rejected = saved["backend"], dict(saved["rejected"])
        self._accepted = dict(saved["accepted"])
        self._steps = {mode: Step(*step) for mode, step in saved["steps"].items()}
        self._still = dict(saved.get("still", {}))
        self._asymmetry = dict(saved.get("asymmetry", {}))

    def _choose(self, theta: Tensor, mode: tuple[bool, ...]) -> str:
        self.rejected = {}
        ledger = self.objective.ledger
        ledger.grads["setup"] += 1  # the samples judged on are fewer than one pass
        ledger.hvps["setup"] += 1
        batch = next(self.objective.chunks())[0]
        referee = Referee(self.objective.sandbox, theta, batch)
        self._still[mode] = referee.still
        chosen, apart = self._first_right(referee), 0.0
        if chosen == "difference":
            apart, n_grads = self._apart(referee, self._step(theta, mode))
            ledger.grads["setup"] += n_grads if referee.batch is batch else 1
        # the same answer on every rank: the probes are collective
        self._asymmetry[mode] = self.objective.mean(apart)
        return chosen

    def _apart(self, referee: Referee, step: Step) -> tuple[float, int]:
        """Return how far the gradient is from that of a function, and the gradients that took."""
        dtype = step.dtype or self.objective.layout.dtype
        theta = referee.theta.to(dtype)

        def gradient(point: Tensor) -> Tensor:
            return self.objective.sandbox.gradient(point, [(referee.batch, 1.0)], step.dtype)[1]

        def product(vector: Tensor, scale: float) -> Tensor:
            return without(step.product(gradient, theta, vector, scale), referee.still)

        apart, n_products = asymmetry(product, [d.to(dtype) for d in referee.directions])
        return apart, 2 * n_products

    def _first_right(self, referee: Referee) -> str:
        """Return the first backend that agrees with the referee."""
        for name in self._wanted:
            if name == "difference":
                return name
            try:
                error = referee.disagreement(self._trial(name, referee))
            except Exception as failure:  # anything: transforms raise what they like
                lines = str(failure).strip().splitlines() or [""]
                self.rejected[name] = f"{type(failure).__name__}: {lines[0]}"
                continue
            if error <= referee.tolerance:
                return name
            self.rejected[name] = f"{error:.2g} away from central differences"
        raise CurvatureError(
            must(
                "backend",
                "right for this model",
                f"{self._wanted[0]!r}, {self.rejected[self._wanted[0]]}",
                'Pass hvp="auto", which falls back to central differences.',
            )
        )

    def _trial(self, name: str, referee: Referee) -> list[Tensor]:
        """Return the backend's products in the referee's directions."""
        sandbox, dtype, linearise = self.objective.sandbox, referee.dtype, LINEARISE[name]
        with sandbox.guard():
            params = sandbox.params_at(referee.theta, dtype)
            linearised = linearise(sandbox, params, referee.batch, dtype)
            products = [
                sandbox.layout.flatten(
                    linearised.product(sandbox.params_at(direction, dtype)), referee.theta.dtype
                )
                for direction in referee.directions
            ]
            products = [without(product, referee.still) for product in products]
            if dtype is not None:
                # Right in float64; it must also run in the model's own precision.
                params = sandbox.params_at(referee.theta)
                linearise(sandbox, params, referee.batch, None).product(params)
        return products
