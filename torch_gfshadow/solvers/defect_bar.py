"""The error bar beside the defect solver: few long steps, so ε is carried often and cheaply.

A step of the defect solver spans many time constants, over which what went wrong before it has
long decayed. A bar that waits for sixteen of them counts it all the same. So ε is carried after
two steps, by the Chebyshev method of first order, which needs two thirds of the evaluations.

Where a bar is below what is asked for, carrying it saves the flow nothing, but the bar is then as
wide as the ε of long ago. So it is carried there as well once ε is expected to have faded, or has
grown, by a factor: as often as the logarithm of what changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torch_gfshadow.solvers.base import Node, load_plain, save_plain
from torch_gfshadow.solvers.error_bar import MARGIN, ErrorBar

_DAMPING = 2.0
"""Stiff modes shrink to a quarter over a block, and the interval is 0.96·s²."""
_LATE = 0.4
"""Modes that fade by e^1.6 over a block vanish at its end, which true ones do not; they are still
there in this part of it. So the longest ε of the late stages is kept."""
_STEPS, _SHARE, _ENOUGH = 2, 0.35, 0.9
_DEAR, _FAIR = 0.9, 0.6
"""What a stale bar may cost of what the flow has cost since: if it shortens the flow's steps, and
if not."""
_FADED, _GROWN, _LEAST = 5.0, 1.5, 0.25
"""Stale is a bar expected to have faded by the one, or whose discrepancy has grown by the other:
the field is differenced at the end of a block only. A block is at most 1/``_LEAST`` times as long
as the one before would be, since ε fades ever more slowly but may be of other modes by then."""
_KEPT = 0.1
_KEYS = ["_scale_then", "_fading", "_kept"]


class DefectBar(ErrorBar):
    """:class:`ErrorBar` for steps that are long compared with 1/λ_max.

    Attributes:
        allowed: A bar well below this one needs no better estimate, unless it is stale.
    """

    allowed = 0.0
    _scale_then = 0.0
    _fading, _kept = math.inf, 1.0
    _expected: tuple[float, float, float] = (0.0, 0.0, 1.0)

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

    def expect(self, size: float, start: float, length: float) -> None:
        """Note what the step under way is going to get wrong, and where it begins and how far."""
        self._expected, self._ungraded = (size, start, length), 0.0

    def at(self, time: float) -> None:
        """Note the time the bar is asked for: a step's local error grows as the third power."""
        size, start, length = self._expected
        share = min(max((time - start) / length, 0.0), 1.0)
        self._ungraded = self._kept * size * share**3

    def _is_due(self) -> bool:
        wide = self.value >= _ENOUGH * self.allowed
        if self._is_stale():
            share = _DEAR if wide else _FAIR
        else:
            share = _SHARE if wide and self._steps >= _STEPS else 0.0
        return self._needed() <= share * self._evaluations

    def _is_stale(self) -> bool:
        faded = self._fading * (self._now - self._start) > math.log(_FADED)
        return faded or self._scale > _GROWN * self._scale_then

    def _needed(self) -> int:
        return max(2, math.ceil(math.sqrt(1.0 + 1.05 * MARGIN * self._h_lambda)))

    def _take(self, carried: Tensor, size: float, plain: float, span: float) -> None:
        raw = self._length(self._pending)
        super()._take(carried, size, plain, span)
        faded = math.log(plain / max(self._norm, 1e-300))
        self._fading = max(faded, _LEAST * math.log(_FADED)) / span
        # local errors of stiff modes are overrated by up to ½hλ; carrying them takes that back
        self._kept = min(max(self._norm / max(raw, 1e-300), _KEPT), 1.0)
        self._recent *= self._kept

    def _begin_block(self, node: Node) -> None:
        super()._begin_block(node)
        self._scale_then = self._scale

    def state_dict(self) -> dict[str, Any]:
        """Return ε and what was not carried yet, as tensors and numbers."""
        return super().state_dict() | save_plain(self, _KEYS) | {"expected": list(self._expected)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        super().load_state_dict(saved)
        load_plain(self, _KEYS, saved)
        size, start, length = saved["expected"]
        self._expected = size, start, length

    def _carried(self, node: Node, span: float, stages: int) -> Tensor:
        along = self._along(node, span, stages, _DAMPING)
        (_, longest), most = next(along), 0.0
        for share, error in along:
            if share >= _LATE and not (size := self._length(error)) <= most:
                longest, most = error, size
        return longest
