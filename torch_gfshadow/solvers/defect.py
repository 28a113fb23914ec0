"""The defect solver: the run's own gradients carry the solution, and only its defect is integrated.

A run of gradient descent computes ∇f at every step and throws it away. Let F̂(t) be the field at
the iterates, piecewise linear in time, and P' = F̂ the path that it gives; P costs one addition per
step (``path.py``). The flow is θ̄ = P + D with

    D' = F(P + D) − F̂(t),   D = 0 where it starts,

without approximation: F̂ only decides how small D is. Where the run is smooth, D is as small as the
discrepancy, and to resolve a tenth of the discrepancy it takes a tenth of D: two digits less than
of θ̄. So D is integrated by RKC2 in very long steps, whose stages are evaluated as the run comes
past them: nothing of the run's past is stored, and the next stage is always known ahead, so that
D can be read at the run's own time.

What has passed cannot be evaluated again, so no step is rejected: what it got wrong is in the bar.

Source: Zadunaisky, Numer. Math. 27 (1976) 21–39, estimates the error of a numerical solution from
its defect; here the run is that numerical solution, and its error the discrepancy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_gfshadow.solvers.base import Field, Node, load_plain, save_plain
from torch_gfshadow.solvers.rkc import coefficients, stages_for
from torch_gfshadow.solvers.rkc2 import MAX_STAGES, error_scale
from torch_gfshadow.solvers.spectral import SpectralRadius

_SAFETY, _GROW, _SHRINK, _TREND, _FEW = 0.8, 2.0, 0.2, 1.5, 4
_LIFE = 80
_LONGEST = 0.65 * (MAX_STAGES**2 - 1)
_PLAIN = ["next_step", "ungraded", "h_lambda", "_h", "_stages", "_stage", "_from", "_to", "_seen"]
_PLAIN += ["_last_step", "_last_ratio"]
_TENSORS = ["_slope", "_curve", "_base", "_rate", "_before", "_value", "_last"]
_TENSORS += ["local_error"]


@functools.lru_cache(maxsize=256)
def times_of(s: int) -> tuple[float, ...]:
    """Return c_0 … c_s: where in a step the stages of RKC2 stand, 0 to 1."""
    mu, nu, mu_t, gamma_t = coefficients(s)
    c = [0.0, mu_t[1]]
    for j in range(2, s + 1):
        c.append(mu[j] * c[j - 1] + nu[j] * c[j - 2] + mu_t[j] + gamma_t[j])
    return tuple(c)


class DefectStepper:
    """D over one step of RKC2 after another, each from D = 0.

    Args:
        field: Right-hand side F.
        node: Where the step begins: P, F(P) and the time.
        ahead: F̂ there, shape ``[d]``.
        first_step: Length of the first step in flow time.
        spectral: What is known of the field's stiffness.

    Attributes:
        left: Where the step under way begins.
        local_error: What the last whole step got wrong, shape ``[d]``.
        ungraded: Norm of what the step under way is expected to get wrong.
        h_lambda: h·λ_max of the step under way.
        next_step: Length that the next step is going to have.
    """

    name = "defect"
    order = 2

    def __init__(
        self, field: Field, node: Node, ahead: Tensor, first_step: float, spectral: SpectralRadius
    ) -> None:
        self.spectral, self._field = spectral, field
        spectral.life = _LIFE
        self.local_error: Tensor | None = None
        self.ungraded, self.next_step = 0.0, first_step
        self._last_step, self._last_ratio = 0.0, 0.0
        self._begin(node, node.field - ahead, None)

    def _begin(self, node: Node, slope: Tensor, curve: Tensor | None) -> None:
        """Begin a step where D = 0, D' = ``slope`` and D'' is about ``curve``."""
        self.spectral.measure(node)
        bound = self.spectral.bound
        h = min(self.next_step, _LONGEST / bound if bound > 0.0 else math.inf)
        self.left, self._h, self.h_lambda = node, h, h * bound
        self._slope, self._curve = slope, curve
        self._seen, self._last = node.time, slope  # D' where it was evaluated last
        self._stages, self._stage = stages_for(self.h_lambda), 1
        weight = coefficients(self._stages)[2][1]
        # the last two stages; the first of them is D itself
        self._before, self._value = torch.zeros_like(slope), slope * (weight * h)
        # between these two, D is interpolated: value and slope at one, the value at the other
        self._base, self._rate = self._before, slope
        self._from, self._to = node.time, self.due

    @property
    def due(self) -> float:
        """Time of the next evaluation."""
        return self.left.time + self._h * times_of(self._stages)[self._stage]

    @property
    def length(self) -> float:
        """Length of the step under way."""
        return self._h

    @property
    def stages(self) -> int:
        """Stages of the step under way, each one evaluation."""
        return self._stages

    @property
    def stability(self) -> float:
        """Real stability interval of the step under way."""
        return 0.65 * (self._stages**2 - 1)

    def evaluate(self, path: Tensor, ahead: Tensor) -> Node | None:
        """Evaluate the stage that is due.

        Args:
            path: P there, shape ``[d]``.
            ahead: F̂ there, shape ``[d]``.

        Returns:
            The node in which the step ends, if this was its end: then :meth:`proceed`.
        """
        state = path + self._value
        field = self._field(state)
        self.spectral.spend(1)
        rate = field - ahead
        s, j, h = self._stages, self._stage, self._h
        if j == s:
            error = self._value - 0.5 * h * (self._slope + rate)
            self.local_error = error.mul_(error_scale(s))
            return Node(self.left.time + h, state, field)
        mu, nu, mu_t, gamma_t = coefficients(s)
        following = mu[j + 1] * self._value + nu[j + 1] * self._before
        following.add_(rate, alpha=mu_t[j + 1] * h).add_(self._slope, alpha=gamma_t[j + 1] * h)
        self._curve = (rate - self._last) / (self._to - self._seen)
        self._seen, self._last = self._to, rate
        if j > 1:  # the first stage is Euler's, less accurate than the start itself
            self._base, self._rate, self._from = self._value, rate, self._to
        self._before, self._value, self._stage = self._value, following, j + 1
        self._to = self.due
        return None

    def proceed(self, node: Node, ahead: Tensor, tolerance: float) -> None:
        """Begin the next step at ``node``, from D = 0: its end is for the caller to add to P.

        Args:
            node: What :meth:`evaluate` returned.
            ahead: F̂ there, as it was given to it.
            tolerance: Largest norm of the next step's local error.
        """
        assert self.local_error is not None
        size, h = float(torch.linalg.vector_norm(self.local_error)), self._h
        ratio = max(size / tolerance, 1e-12)
        factor = _SAFETY / math.cbrt(ratio)
        if self._last_step > 0.0 and self._stages > _FEW:
            # the flow slows down: predictive control (Watts 1984)
            trend = h / self._last_step * math.cbrt(self._last_ratio / ratio)
            factor *= min(max(trend, 1.0 / _TREND), _TREND)
        self._last_step, self._last_ratio = h, ratio
        factor = min(max(factor, _SHRINK), _GROW) if math.isfinite(size) else _SHRINK
        self.next_step, self.ungraded = h * factor, size * factor**3
        slope = node.field - ahead
        curve = (slope - self._last) / (node.time - self._seen)
        self._begin(node, slope, curve)

    @property
    def value(self) -> Tensor:
        """D where the next evaluation is due, shape ``[d]``."""
        return self._value

    def offset(self, time: float) -> Tensor:
        """Return D at a time between the last evaluation and the next, or shortly after it."""
        tau = time - self._from
        if self._stage == 1:
            out = self._slope * tau
            return out if self._curve is None else out.add_(self._curve, alpha=0.5 * tau * tau)
        span = self._to - self._from
        rise = (self._value - self._base).sub_(self._rate, alpha=span)
        return torch.add(self._base, self._rate, alpha=tau).add_(rise, alpha=(tau / span) ** 2)

    def rate(self, time: float) -> Tensor:
        """Return D' at such a time, shape ``[d]``."""
        if self._curve is None:
            return self._last
        return self._last + (time - self._seen) * self._curve

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next evaluations depend on, as tensors and numbers."""
        return save_plain(self, _PLAIN + _TENSORS) | {
            "left": self.left.state_dict(),
            "spectral": self.spectral.state_dict(),
        }

    @classmethod
    def resumed(cls, field: Field, saved: Mapping[str, Any], like: Tensor) -> DefectStepper:
        """Return the stepper that was saved, on the device and in the dtype of ``like``."""
        self = cls.__new__(cls)
        self._field, self.spectral = field, SpectralRadius(field)
        self.spectral.load_state_dict(saved["spectral"], like)
        self.spectral.life = _LIFE
        load_plain(self, _PLAIN, saved)
        self.left = Node.from_state(saved["left"], like)
        for name in _TENSORS:
            value = saved[name.lstrip("_")]
            setattr(self, name, None if value is None else value.to(like))
        return self
