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

    Means are carried times the first lr, so that errors of θ, the means and their sum compare.
    """

    name = ""
    smooth = False  # √v turns sharply where v is near 0
    _keys: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._setting: tuple[Any, ...] = ()
        self._rate, self._unit, self._eps = 0.0, 0.0, 0.0
        self._decays: tuple[float, ...] = ()
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
        decays = tuple(float(g.get("weight_decay", 0.0)) for g in groups)
        setting = kinds.pop(), decays
        if setting == self._setting:
            return False
        self._setting, self._decays = setting, decays
        rate = float(setting[0][0])
        self._rate = rate if rate > 0.0 else self._rate
        self._unit, self._eps = self._unit or self._rate or 1.0, float(setting[0][1])
        self._remember(setting[0][2:])
        self._decay = per_parameter(decays, groups, layout)
        self._decoupled = bool(used[0].get("decoupled_weight_decay", False))
        return True

    def step_size(self, groups: ParamGroups) -> float:
        """Return the learning rate that all groups share."""
        return max((float(g["lr"]) for g in groups if g["params"]), default=0.0)

    def _remember(self, memory: tuple[Any, ...]) -> None:
        raise NotImplementedError

    def _forgetting(self, beta: float) -> float:
        """Return the rate κ with e^{−κ·lr} = β."""
        return -math.log(max(beta, 1e-300)) / max(self._rate, 1e-300)

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

    def _remember(self, memory: tuple[Any, ...]) -> None:
        self._alpha = float(memory[0])

    def field(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Return (θ', v') for a state (θ, v)."""
        place, v = theta.chunk(2)
        grad = self._with_decay(place, grad)
        root = (v / self._unit).clamp_min(0.0).sqrt()
        mean = self._forgetting(self._alpha) * (self._unit * grad.square() - v)
        return torch.cat([-grad / (root + self._eps), mean])

    def lift(self, theta: Tensor, grad: Tensor, state: OptimizerState, layout: Layout) -> Tensor:
        """Return (θ, v) with the v that the next step will use."""
        grad, alpha = self._with_decay(theta, grad), self._alpha
        v = alpha * self._held("square_avg", state, layout, theta) + (1.0 - alpha) * grad.square()
        return torch.cat([theta, self._unit * v])

    def position(self, state: Tensor) -> Tensor:
        """Return θ of (θ, v)."""
        return state.chunk(2)[0]


class AdamFlow(_Adaptive):
    """θ' = −(m/c₁)/(√(v/c₂) + ε), m' = κ₁·(g − m), v' = κ₂·(g² − v), c' = κ·(1 − c), t = Σ lr.

    e^{−κᵢ·lr} = βᵢ; the cᵢ are the bias corrections 1 − βᵢ^k. AdamW's decay adds −wd·θ to θ'. The
    means start as the values the next step will use. The state is (θ, m, v, c): three copies of
    the parameters. Not for ``amsgrad`` and ``maximize``.

    Source: da Silva & Gazeau 2020, §2.2; Barakat & Bianchi, "Convergence and dynamical behavior of
    the Adam algorithm for nonconvex stochastic optimization", SIAM J. Optim. 31 (2021), eq. 1.3.
    """

    name = "adam_flow"
    _keys = ("betas",)

    def _remember(self, memory: tuple[Any, ...]) -> None:
        self._betas = float(memory[0][0]), float(memory[0][1])

    def field(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Return (θ', m', v', c') for a state (θ, m, v, c)."""
        (place, m, v), c = theta[:-2].chunk(3), theta[-2:]
        grad = self._with_decay(place, grad)
        first, second = (self._forgetting(beta) for beta in self._betas)
        root = (v / (self._unit * c[1])).clamp_min(0.0).sqrt()
        speed = -m / (self._unit * c[0]) / (root + self._eps)
        if self._decoupled:
            speed = speed - self._decay * place
        rates = torch.tensor([first, second], dtype=theta.dtype, device=theta.device)
        return torch.cat(
            [
                speed,
                first * (self._unit * grad - m),
                second * (self._unit * grad.square() - v),
                rates * (1.0 - c),
            ]
        )

    def lift(self, theta: Tensor, grad: Tensor, state: OptimizerState, layout: Layout) -> Tensor:
        """Return (θ, m, v, c) with the means that the next step will use."""
        grad = self._with_decay(theta, grad)
        b1, b2 = self._betas
        m = b1 * self._held("exp_avg", state, layout, theta) + (1.0 - b1) * grad
        v = b2 * self._held("exp_avg_sq", state, layout, theta) + (1.0 - b2) * grad.square()
        known: Mapping[str, Any] = state.get(layout.params[0], {})
        k = float(known.get("step", 0)) + 1.0
        c = torch.tensor([1.0 - b1**k, 1.0 - b2**k], dtype=theta.dtype, device=theta.device)
        return torch.cat([theta, self._unit * m, self._unit * v, c])

    def position(self, state: Tensor) -> Tensor:
        """Return θ of (θ, m, v, c)."""
        return state[:-2].chunk(3)[0]
