"""Limits of SGD with momentum: the rescaled gradient flow, and the second-order system."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow._tree import Layout
from torch_gfshadow.errors import FlowError
from torch_gfshadow.flows.base import OptimizerState, ParamGroups
from torch_gfshadow.flows.gradient_flow import GradientFlow


class MomentumFlow(GradientFlow):
    """Gradient flow at the pace of momentum: η = lr·(1 − dampening)/(1 − μ) per step.

    The limit lr → 0 at fixed μ, for heavy-ball and Nesterov momentum alike, accurate to O(lr). It
    lacks the start, where the velocity has yet to build up, and every oscillation.

    Source: Kovachki & Stuart, "Continuous Time Analysis of Momentum Methods", JMLR 22 (2021), §2.
    """

    name = "momentum_flow"

    def rates(self, groups: ParamGroups) -> tuple[float, ...]:
        """Return lr·(1 − dampening)/(1 − μ) of every group."""
        plain = super().rates(groups)
        return tuple(
            rate * (1.0 - float(g.get("dampening", 0.0))) / (1.0 - _momentum(g))
            if g.get("momentum")
            else rate
            for rate, g in zip(plain, groups, strict=True)
        )


class HeavyBall:
    """The second-order system m·θ'' + (1 − μ)·θ' (+ lr·μ·∇²f·θ') = −∇f, with m = lr·(1 + μ)/2.

    Primes are derivatives by Σ lr; the clock, as that of :class:`MomentumFlow`, is
    t = Σ lr/(1 − μ). Accurate to O(lr²) at fixed μ once the velocity has built up, and to O(lr)
    while it does. The Hessian term is Nesterov's; it is integrated without a Hessian, as
    w = θ' + a·∇f, a = 2μ/(1 + μ), with m·w' = −∇f − (1 − μ)·θ'. The state is (θ, m₀·w), both in the
    units of θ, m₀ being the first m: two copies of the parameters. Where lr or μ changes, θ and w
    go on.

    Source: Kovachki & Stuart 2021, §3 (heavy ball); Shi, Du, Jordan & Su, "Understanding the
    acceleration phenomenon via high-resolution differential equations", Math. Prog. 195 (2022), for
    the Hessian term of Nesterov's method.
    """

    name = "heavy_ball"

    def __init__(self) -> None:
        self._gradient = GradientFlow()
        self.pace: tuple[float, ...] = ()
        self._nesterov = False
        self._unit = 0.0

    @property
    def fixed(self) -> tuple[Any, ...]:
        """What makes the system besides its pace (lr, 1 − μ)."""
        return self._nesterov, self._gradient.fixed

    def configure(self, groups: ParamGroups, layout: Layout) -> bool:
        """Read rate, momentum and decay; say whether the system changed."""
        used = [g for g in groups if g["params"]]
        kinds = {(float(g["lr"]), _momentum(g), bool(g.get("nesterov"))) for g in used}
        if len(kinds) != 1 or any(g.get("dampening") for g in used):
            raise FlowError(
                "param_groups must be of one lr, one momentum and no dampening for the flow "
                f"'heavy_ball', got (lr, momentum, nesterov) = {sorted(kinds)}. "
                "Use flow='momentum_flow'."
            )
        rate, mu, nesterov = kinds.pop()
        before = self.pace, self._nesterov
        self.pace, self._nesterov = (rate, 1.0 - mu), nesterov
        self._unit = self._unit or rate * (1.0 + mu) / 2.0 or 1.0
        gradient = copy.copy(self._gradient)  # copies of this flow share what is not replaced
        changed = gradient.configure(groups, layout)
        self._gradient = gradient
        return changed or before != (self.pace, self._nesterov)

    def step_size(self, groups: ParamGroups) -> float:
        """Return lr/(1 − μ)."""
        return max(float(g["lr"]) / (1.0 - _momentum(g)) for g in groups if g["params"])

    def span(self, pace: tuple[float, ...]) -> float:
        """Return the flow time of a step at this pace: lr/(1 − μ)."""
        return pace[0] / max(pace[1], 1e-300)

    def field(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Return the rate of change of the state by t, for a state (θ, m₀·w)."""
        pace = max(self.pace[0], 1e-300), self.pace[1]
        return self.by_step(theta, grad, pace) / self.span(pace)

    def by_step(self, state: Tensor, grad: Tensor, pace: tuple[float, ...]) -> Tensor:
        """Return the rate of change of the state per step of the optimizer."""
        place, p = state.chunk(2)
        rate, friction = pace
        down = self._gradient.field(place, grad)  # −∇f − wd·θ
        velocity = p / self._unit + self._share(friction) * down
        turned = (down - friction * velocity) * (2.0 * self._unit / (2.0 - friction))
        return torch.cat([rate * velocity, turned])

    def lift(self, theta: Tensor, grad: Tensor, state: OptimizerState, layout: Layout) -> Tensor:
        """Return (θ, m₀·w) with the velocity of the momentum buffers; see the class."""
        mu, down = 1.0 - self.pace[1], self._gradient.field(theta, grad)
        held = layout.flatten([state.get(p, {}).get("momentum_buffer") for p in layout.params])
        held = held.to(theta)
        # chosen so that the build-up of the velocity ends where the iterates' does, to O(lr²);
        # the fast mode itself decays by μ a step in one and by e^{−2(1−μ)/(1+μ)} in the other
        if self._nesterov:
            velocity = ((1.0 + 2.0 * mu) * down - 2.0 * mu**2 * held) / (1.0 + mu)
        else:
            velocity = (down - 2.0 * mu * held) / (1.0 + mu)
        return torch.cat([theta, self._unit * (velocity - self._share(1.0 - mu) * down)])

    def position(self, state: Tensor) -> Tensor:
        """Return θ of (θ, m₀·w)."""
        return state.chunk(2)[0]

    def state_dict(self) -> dict[str, Any]:
        """Return what was last read from the optimizer."""
        mine = {"pace": self.pace, "nesterov": self._nesterov, "unit": self._unit}
        return mine | {"gradient": dict(vars(self._gradient))}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Be as :meth:`state_dict` found it."""
        self.pace, self._unit = tuple(saved["pace"]), saved["unit"]
        self._nesterov = saved["nesterov"]
        vars(self._gradient).update(saved["gradient"])

    def _share(self, friction: float) -> float:
        return 2.0 * (1.0 - friction) / (2.0 - friction) if self._nesterov else 0.0


def _momentum(group: object) -> float:
    mu = float(group.get("momentum", 0.0))  # type: ignore[attr-defined]
    if not 0.0 <= mu < 1.0:
        raise FlowError(f"momentum must be below 1 for a continuous limit, got {mu}. Use 0.9, say.")
    return mu
