"""Fields of RMSprop and Adam: documented approximations, for optimizers without a gradient flow.

Their running means forget over a fixed number of steps, so at fixed β there is no limit lr → 0 in
which they stay finite-memory: the systems below keep the memory in steps, as the optimizer does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import FlowError
from torch_gfshadow.flows.base import OptimizerState, ParamGroups
from torch_gfshadow.flows.gradient_flow import per_parameter


class _Adaptive:
    """What both share: one rate for all groups, decay by group, a mean v of squared gradients.

    The pace is (lr, κ, …): the rate, and what the means forget in a step, κ = −ln β each. Means
    and bias corrections are carried times the first lr, so that their errors compare with θ's.
    """

    name = ""
    smooth = False  # √v turns sharply where v is near 0
    _keys: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.pace: tuple[float, ...] = ()
        self.fixed: tuple[Any, ...] = ()
        self._unit, self._eps = 0.0, 0.0
        self._decay: Tensor | float = 0.0
        self._decoupled = False

    def configure(self, groups: ParamGroups, layout: Layout) -> bool:
        """Read rate, memory, ε and decay; say whether the field changed."""
        used = [g for g in groups if g["params"]]
        kinds = {tuple(g[key] for key in ("lr", "eps", *self._keys)) for g in used}
        if len(kinds) != 1:
            raise FlowError(
                f"param_groups must agree in lr, eps and {', '.join(self._keys)} for the flow "
                f"{self.name!r}, got {sorted(map(str, kinds))}. Give every group the same."
            )
        rate, eps, *memory = kinds.pop()
        decays = tuple(float(g.get("weight_decay", 0.0)) for g in groups)
        decoupled = bool(used[0].get("decoupled_weight_decay", False))
        before = self.pace, self.fixed
        self.pace = (float(rate), *(_forgetting(float(b)) for b in self._betas(memory)))
        self.fixed = float(eps), decays, decoupled
        if before == (self.pace, self.fixed):
            return False
        self._unit = self._unit or self.pace[0] or 1.0
        if before[1] != self.fixed:
            self._eps, self._decoupled = float(eps), decoupled
            self._decay = per_parameter(decays, groups, layout)
        return True

    def step_size(self, groups: ParamGroups) -> float:
        """Return the learning rate that all groups share."""
        return max((float(g["lr"]) for g in groups if g["params"]), default=0.0)

    def span(self, pace: tuple[float, ...]) -> float:
        """Return the flow time of a step at this pace: the rate."""
        return pace[0]

    def field(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Return the rate of change of the state by t = Σ lr."""
        rate = max(self.pace[0], 1e-300)
        return self.by_step(theta, grad, (rate, *self.pace[1:])) / rate

    def by_step(self, state: Tensor, grad: Tensor, pace: tuple[float, ...]) -> Tensor:
        """Return the rate of change of the state per step of the optimizer."""
        raise NotImplementedError

    def _betas(self, memory: list[Any]) -> tuple[Any, ...]:
        return tuple(memory)

    def _with_decay(self, theta: Tensor, grad: Tensor) -> Tensor:
        grad = grad.to(theta.dtype)
        return grad if self._decoupled else grad + self._decay * theta

    def _held(self, key: str, state: OptimizerState, layout: Layout, like: Tensor) -> Tensor:
        return layout.flatten([state.get(p, {}).get(key) for p in layout.params]).to(like)


class RMSpropFlow(_Adaptive):
    """θ' = −g/(√v + ε), v' = κ·(g² − v), with e^{−κ·lr} = α and t = Σ lr.

    v starts as the value the next step will use. Not for ``momentum`` and ``centered``.

    Source: da Silva & Gazeau, "A general system of differential equations to model first-order
    adaptive algorithms", JMLR 21 (2020), §2.1.
    """

    name = "rmsprop_flow"
    _keys = ("alpha",)

    def by_step(self, state: Tensor, grad: Tensor, pace: tuple[float, ...]) -> Tensor:
        """Return (θ', v') per step, for a state (θ, v)."""
        place, v = state.chunk(2)
        rate, forgets = pace
        grad = self._with_decay(place, grad)
        root = (v / self._unit).clamp_min(0.0).sqrt()
        mean = forgets * (self._unit * grad.square() - v)
        return torch.cat([-rate * grad / (root + self._eps), mean])

    def lift(self, theta: Tensor, grad: Tensor, state: OptimizerState, layout: Layout) -> Tensor:
        """Return (θ, v) with the v that the next step will use."""
        grad, alpha = self._with_decay(theta, grad), math.exp(-self.pace[1])
        v = alpha * self._held("square_avg", state, layout, theta) + (1.0 - alpha) * grad.square()
        return torch.cat([theta, self._unit * v])

    def position(self, state: Tensor) -> Tensor:
        """Return θ of (θ, v)."""
        return state.chunk(2)[0]


class AdamFlow(_Adaptive):
    """θ' = −(m/c₁)/(√(v/c₂) + ε), m' = κ₁·(g − m), v' = κ₂·(g² − v), c' = κ·(1 − c), t = Σ lr.

    e^{−κᵢ·lr} = βᵢ; the cᵢ are the bias corrections 1 − βᵢ^k, of each k there is: parameters that
    joined later have taken fewer steps. AdamW's decay adds −wd·θ to θ'. The means start as the
    values the next step will use. The state is (θ, m, v, c): three copies of the parameters. Not
    for ``amsgrad`` and ``maximize``.

    Source: da Silva & Gazeau 2020, §2.2; Barakat & Bianchi, "Convergence and dynamical behavior of
    the Adam algorithm for nonconvex stochastic optimization", SIAM J. Optim. 31 (2021), eq. 1.3.
    """

    name = "adam_flow"
    _keys = ("betas",)

    def __init__(self) -> None:
        super().__init__()
        self._ages = 1  # different k among the parameters
        self._age_of: Tensor | None = None  # which of them, by coordinate

    def _betas(self, memory: list[Any]) -> tuple[Any, ...]:
        return tuple(memory[0])

    def by_step(self, state: Tensor, grad: Tensor, pace: tuple[float, ...]) -> Tensor:
        """Return (θ', m', v', c') per step, for a state (θ, m, v, c)."""
        cut = -2 * self._ages
        (place, m, v), c = state[:cut].chunk(3), state[cut:].view(2, -1) / self._unit
        rate, first, second = pace
        grad = self._with_decay(place, grad)
        c1, c2 = c if self._age_of is None else c[:, self._age_of]
        root = (v / (self._unit * c2)).clamp_min(0.0).sqrt()
        speed = -m / (self._unit * c1) / (root + self._eps)
        if self._decoupled:
            speed = speed - self._decay * place
        rates = torch.tensor([[first], [second]], dtype=state.dtype, device=state.device)
        return torch.cat(
            [
                rate * speed,
                first * (self._unit * grad - m),
                second * (self._unit * grad.square() - v),
                (rates * (self._unit * (1.0 - c))).view(-1),
            ]
        )

    def lift(self, theta: Tensor, grad: Tensor, state: OptimizerState, layout: Layout) -> Tensor:
        """Return (θ, m, v, c) with the means that the next step will use."""
        grad = self._with_decay(theta, grad)
        b1, b2 = (math.exp(-forgets) for forgets in self.pace[1:])
        m = b1 * self._held("exp_avg", state, layout, theta) + (1.0 - b1) * grad
        v = b2 * self._held("exp_avg_sq", state, layout, theta) + (1.0 - b2) * grad.square()
        each = [(1.0 - b1**k, 1.0 - b2**k) for k in _steps_to_come(state, layout)]
        ages = sorted(set(each))
        self._ages, self._age_of = len(ages), None
        if len(ages) > 1:
            which = torch.tensor([ages.index(age) for age in each], device="cpu")
            sizes = torch.tensor(layout.sizes, device="cpu")
            self._age_of = which.repeat_interleave(sizes).to(theta.device)
        c = torch.tensor(ages, dtype=theta.dtype, device=theta.device).t().reshape(-1)
        return torch.cat([theta, self._unit * m, self._unit * v, self._unit * c])

    def position(self, state: Tensor) -> Tensor:
        """Return θ of (θ, m, v, c)."""
        return state[: -2 * self._ages].chunk(3)[0]


def _steps_to_come(state: OptimizerState, layout: Layout) -> list[float]:
    """Return the number k of the next step, by parameter."""
    held: list[Mapping[str, Any]] = [state.get(p, {}) for p in layout.params]
    return [float(known.get("step", 0)) + 1.0 for known in held]


def _forgetting(beta: float) -> float:
    """Return κ with e^{−κ} = β."""
    return -math.log(max(beta, 1e-300))
