"""The error bar beside the defect solver: few long steps, so ε is carried often and cheaply.

A step of the defect solver spans many time constants, over which what went wrong before it has
long decayed. A bar that waits for sixteen of them counts it all the same. So ε is carried after
two steps, by the Chebyshev method of first order, which needs two thirds of the evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torch_gfshadow.solvers.base import Node
from torch_gfshadow.solvers.error_bar import MARGIN, ErrorBar
from torch_gfshadow.solvers.rkc import first_order

_DAMPING = 2.0
"""Stiff modes shrink to a quarter over a block, and the interval is 0.96·s²."""
_STEPS, _SHARE, _ENOUGH = 2, 0.35, 0.9


class DefectBar(ErrorBar):
    """:class:`ErrorBar` for steps that are long compared with 1/λ_max.

    Attributes:
        allowed: A bar well below this one needs no better estimate.
    """

    allowed = 0.0
    _scale_then = 0.0

    @property
    def value(self) -> float:
        """Error bar, in the units of θ: within a block ε grows as the discrepancy does.

        Both obey the same linearised flow, and the discrepancy is known at no cost.
        """
        then = self._scale_then
        return super().value * (max(self._scale / then, 1.0) if then > 0.0 else 1.0)

    def start_from(self, scale: float) -> None:
        """Note the discrepancy where the first block begins."""
        self._scale = self._scale_then = scale

    def _is_due(self) -> bool:
        if self.value < _ENOUGH * self.allowed:
            return False
        return self._steps >= _STEPS and self._needed() <= _SHARE * self._evaluations

    def _needed(self) -> int:
        return max(2, math.ceil(math.sqrt(1.0 + 1.05 * MARGIN * self._h_lambda)))

    def _begin_block(self, node: Node) -> None:
        super()._begin_block(node)
        self._scale_then = self._scale

    def state_dict(self) -> dict[str, Any]:
        """Return ε and what was not carried yet, as tensors and numbers."""
        return super().state_dict() | {"scale_then": self._scale_then}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        super().load_state_dict(saved)
        self._scale_then = saved["scale_then"]

    def _carried(self, node: Node, span: float, stages: int) -> Tensor:
        scale = self._probe_size(node) / self._norm
        mu, nu, mu_t = first_order(stages, _DAMPING)
        forcing = self._pending / span

        def slope(error: Tensor) -> Tensor:
            moved = self._field(node.state + scale * error)
            return moved.sub_(node.field).div_(scale).to(error.dtype).add_(forcing)

        first = slope(self._error) if bool(self._error.any()) else forcing
        before, current = self._error, self._error + (mu_t[1] * span) * first
        for j in range(2, stages + 1):
            following = mu[j] * current + nu[j] * before
            before, current = current, following.add_(slope(current), alpha=mu_t[j] * span)
        return current
